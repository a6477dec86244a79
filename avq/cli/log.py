"""The commands ``avq log ...``: parse, one library call, exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command

_OUTPUT = click.option("-o", "--output", type=PATH, required=True, help="what to write")


@cli.group(name="log", cls=AvqGroup)
def log() -> None:
    """Look into logs, recover, cut, merge, convert and check them (MCAP files and rosbag2 folders)."""


def _blur_options(handler: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option(
            "--blur-class", "blur_classes", multiple=True, metavar="NAME", help="hide these instead"
        ),
        click.option("--bundle", type=PATH, help="with --blur: finds what to hide, beside recorded boxes"),
        click.option("--blur", "blurred", is_flag=True, help="hide every detected person and vehicle"),
    ):
        handler = option(handler)
    return handler


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
def info(call: Call, path: Path) -> int:
    """Topics, rates, span and damage of a log."""
    from avq.logs.info import info as look

    answer = look(path, call.report)
    head = {key: answer[key] for key in ("file", "kind", "messages", "seconds", "damage")}
    return call.answer(answer, [("Log", [head]), ("Topics", answer["topics"])])


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
def verify(call: Call, path: Path) -> int:
    """Read everything with every check; exit code 1 when anything is damaged."""
    from avq.logs.info import verify as check

    answer = check(path, call.report)
    closing = [f"damaged: {text}" for text in answer["findings"]] or [f"whole: {answer['messages']} messages"]
    return call.answer(
        answer, [("Topics", answer["topics"])], [*closing, *answer["notes"]], yes=answer["whole"]
    )


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
@_OUTPUT
@click.option("--from", "start_s", type=click.FloatRange(min=0), help="seconds after the first message")
@click.option("--to", "end_s", type=click.FloatRange(min=0), help="seconds after the first message")
@click.option("--around", multiple=True, metavar="EVENT", help="kind of /avq/events, or any")
@click.option(
    "--before",
    "before_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="seconds before it",
)
@click.option(
    "--after",
    "after_s",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="seconds after it",
)
@click.option("--topic", "topics", multiple=True, help="keep only these topics")
@_blur_options
def cut(call: Call, path: Path, output: Path, **arguments: Any) -> int:
    """Write part of a log; with nothing cut away, recover a log whose writer was killed."""
    from avq.logs.cut import Part
    from avq.logs.cut import cut as cut_log

    blur = {name: arguments.pop(name) for name in ("blurred", "bundle", "blur_classes")}
    answer = cut_log(path, output, Part(**arguments), host=call.host(), report=call.report, **blur)
    return _answer(call, answer)


@command(log)
@click.argument("paths", metavar="LOG...", type=PATH, nargs=-1, required=True)
@_OUTPUT
def merge(call: Call, paths: tuple[Path, ...], output: Path) -> int:
    """Write several logs as one, by log time; what two of them hold is written once."""
    from avq.logs.cut import merge as merge_logs

    return call.answer(merge_logs(paths, output, call.report))


@command(log)
@click.argument("path", metavar="LOG", type=PATH)
@_OUTPUT
@click.option("--storage", default="mcap", show_default=True, help="of a rosbag2 folder: mcap, sqlite3")
@_blur_options
def convert(call: Call, path: Path, output: Path, **arguments: Any) -> int:
    """rosbag2 to MCAP (-o NAME.mcap), or MCAP to rosbag2 (-o FOLDER)."""
    from avq.logs.convert import convert as convert_log

    return _answer(call, convert_log(path, output, host=call.host(), report=call.report, **arguments))


def _answer(call: Call, answer: dict[str, Any]) -> int:
    """For people, what was blurred is a table of its own, and its limits are said last."""
    blur = answer.get("blur")
    if blur is None:
        return call.answer(answer)
    written = {key: value for key, value in answer.items() if key in ("output", "messages", "of", "damage")}
    hidden = [{"hidden": label, "boxes": count} for label, count in blur["boxes"].items()]
    left = [{"left out": topic, "why": ", ".join(why)} for topic, why in blur["left_out"].items()]
    tables = [("Log", [written]), (f"Blurred in {blur['pictures']} pictures", hidden), ("Left out", left)]
    return call.answer(answer, tables, blur["limits"])
