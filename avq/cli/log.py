"""Commands ``avq log ...``: info, verify, cut, merge and convert."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command

_OUTPUT = click.option("-o", "--output", type=PATH, required=True, help="file or folder to write")


@cli.group(name="log", cls=AvqGroup)
def log() -> None:
    """Examine, recover, cut, merge and convert logs (MCAP files and rosbag2 folders)."""


def _blur_options(handler: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option(
            "--blur-class", "blur_classes", multiple=True, metavar="NAME", help="blur these classes instead"
        ),
        click.option("--bundle", type=PATH, help="with --blur: also blur what this bundle detects"),
        click.option("--blur", "blurred", is_flag=True, help="blur every detected person and vehicle"),
    ):
        handler = option(handler)
    return handler


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
def info(call: Call, path: Path) -> int:
    """Show topics, rates, duration and damage of a log."""
    from avq.logs.info import info as log_info

    answer = log_info(path, call.report)
    head = {key: answer[key] for key in ("file", "kind", "messages", "seconds", "damage")}
    return call.emit(answer, [("Log", [head]), ("Topics", answer["topics"])])


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
def verify(call: Call, path: Path) -> int:
    """Read the whole log with every checksum. Exit code 1 if anything is damaged."""
    from avq.logs.info import verify as verify_log

    answer = verify_log(path, call.report)
    footer = [f"damaged: {text}" for text in answer["findings"]] or [f"intact: {answer['messages']} messages"]
    return call.emit(answer, [("Topics", answer["topics"])], [*footer, *answer["notes"]], ok=answer["whole"])


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
@_OUTPUT
@click.option(
    "--from", "start_s", type=click.FloatRange(min=0), help="start, in seconds after the first message"
)
@click.option("--to", "end_s", type=click.FloatRange(min=0), help="end, in seconds after the first message")
@click.option(
    "--around",
    multiple=True,
    metavar="EVENT",
    help="keep the seconds around these events of /avq/events; any: all of them",
)
@click.option(
    "--before",
    "before_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="seconds before each event",
)
@click.option(
    "--after",
    "after_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="seconds after each event",
)
@click.option("--topic", "topics", multiple=True, help="keep only these topics")
@_blur_options
def cut(call: Call, path: Path, output: Path, **arguments: Any) -> int:
    """Write a part of a log. Without limits: recover a log whose writer was killed."""
    from avq.logs.cut import Part
    from avq.logs.cut import cut as cut_log

    blur = {name: arguments.pop(name) for name in ("blurred", "bundle", "blur_classes")}
    answer = cut_log(path, output, Part(**arguments), host=call.host(), report=call.report, **blur)
    return _emit(call, answer)


@command(log)
@click.argument("paths", metavar="LOG...", type=PATH, nargs=-1, required=True)
@_OUTPUT
def merge(call: Call, paths: tuple[Path, ...], output: Path) -> int:
    """Merge several logs into one, ordered by log time. Duplicate messages are written once."""
    from avq.logs.cut import merge as merge_logs

    return call.emit(merge_logs(paths, output, call.report))


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
@_OUTPUT
@click.option(
    "--storage", default="mcap", show_default=True, help="storage of a rosbag2 folder: mcap, sqlite3"
)
@_blur_options
def convert(call: Call, path: Path, output: Path, **arguments: Any) -> int:
    """Convert rosbag2 to MCAP (-o NAME.mcap), or MCAP to rosbag2 (-o FOLDER)."""
    from avq.logs.convert import convert as convert_log

    return _emit(call, convert_log(path, output, host=call.host(), report=call.report, **arguments))


def _emit(call: Call, answer: Mapping[str, Any]) -> int:
    """Print what was written, what was blurred, what was left out, and the limits of the blur."""
    blur = answer.get("blur")
    if blur is None:
        return call.emit(answer)
    written = {key: value for key, value in answer.items() if key in ("output", "messages", "of", "damage")}
    blurred = [{"blurred": label, "boxes": count} for label, count in blur["boxes"].items()]
    omitted = [{"left out": topic, "why": ", ".join(why)} for topic, why in blur["left_out"].items()]
    tables = [("Log", [written]), (f"Blurred in {blur['pictures']} pictures", blurred), ("Left out", omitted)]
    return call.emit(answer, tables, blur["limits"])
