"""Frames through a bundle: live, replayed, and hunted for what made them differ."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, cli, command, ray_option


@command(cli, service=True)
@click.argument("config", type=PATH, required=False)
@click.option("--bundle", type=PATH, help="the bundle to serve")
@click.option("--source", metavar="URI", help="scene://, a file, a folder, rtsp://, v4l2://, log.mcap")
@click.option("--log", type=PATH, help="record an MCAP log")
@click.option("--log-on", type=click.Choice(["all", "miss"]), help="miss: the seconds around each late frame")
@click.option(
    "--log-rotate-mb", type=click.FloatRange(min=0, min_open=True), help="then another file is begun"
)
@click.option("--log-keep-mb", type=click.FloatRange(min=0, min_open=True), help="then the oldest file goes")
@click.option("--frames", type=click.IntRange(min=1), help="stop after so many published frames")
@click.option("--deadline-ms", type=click.FloatRange(min=0, min_open=True), help="capture to publish")
@click.option("--every-frame", "policy", flag_value="every", help="drop nothing")
@click.option("--newest", "policy", flag_value="newest", help="the newest frame wins")
@click.option("--allow-unaccepted", is_flag=True, help="serve a bundle that the gate refused")
@click.option("--web", metavar="HOST:PORT", help="where the page listens; 127.0.0.1:8787 when not given")
@click.option("--no-web", "web", flag_value="off", help="no page, no metrics, no port")
def run(
    call: Call,
    log: Path | None,
    log_on: str | None,
    log_rotate_mb: float | None,
    log_keep_mb: float | None,
    **flags: Any,
) -> int:
    """Serve a bundle on a camera, a file or a log, and keep exact account of every frame."""
    from avq.serve import run_config, serve, summary_tables

    kept = {"path": log, "log_on": log_on, "rotate_mb": log_rotate_mb, "keep_mb": log_keep_mb}
    read = partial(run_config, **flags, log=kept)
    reread = read if flags["config"] is not None else None
    summary = serve(read(), call.host(), call.report, json_lines=call.json, reread=reread)
    code = call.answer(summary.as_json(), summary_tables(summary), line=True)
    return summary.exit_code or code


@command(cli)
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option("--bundle", "bundles", type=PATH, multiple=True, required=True, help="to replay with")
@ray_option
@click.option(
    "--baseline", type=PATH, help="a reference, a folder of them, or another bundle to compare with"
)
@click.option("--accept", is_flag=True, help="write the reference --baseline names")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="runs to accept after")
@click.option("--report", "report_folder", type=PATH, metavar="DIR", help="report.html, diff.md, both.mcap")
@click.option("--mine", "mine_folder", type=PATH, metavar="DIR", help="write the strangest frames as a set")
@click.option(
    "--mine-count", type=click.IntRange(min=1), default=32, show_default=True, help="at most so many"
)
@click.option("--licence", default="not stated", show_default=True, help="of mined pictures, for index.csv")
@click.option("--config", type=PATH, help="a run configuration: its budget and modes decide")
@click.option(
    "--timing", type=click.Choice(["recorded", "scaled", "measured"]), help="stage times to replay with"
)
@click.option("--tier", type=click.Choice(["exact", "toleranced", "metric"]), help="how to compare")
@click.option(
    "--by-loss", is_flag=True, help="another bundle: tolerate 1 % lost or new boxes, 0.02 confidence"
)
@click.option("--every-frame", "policy", flag_value="every", help="drop nothing")
@click.option("--newest", "policy", flag_value="newest", help="the newest frame wins")
@click.option("--frames", type=click.IntRange(min=1), help="stop after so many published frames")
def replay(call: Call, **flags: Any) -> int:
    """Replay a log, video, folder or drawn drive exactly, and say what changed; or many, with every bundle."""
    from avq.replay.batch import run_replay

    outcome = run_replay(**flags, host=call.host(), report=call.report)
    return call.answer(outcome.summary(), outcome.tables(), outcome.closing(), yes=outcome.answer_is_yes)


@command(cli)
@click.argument("log", metavar="LOG")
@click.option("--good", type=PATH, required=True, help="the bundle that is right")
@click.option("--bad", type=PATH, required=True, help="the bundle that differs")
@click.option("--frames", type=click.IntRange(min=1), help="replay only so many frames")
@click.option("--report", "report_folder", type=PATH, metavar="DIR", help="report.html, diff.md, both.mcap")
def bisect(call: Call, **arguments: Any) -> int:
    """Which groups of the bad bundle's plan cause a difference on a log, by replaying mixtures of the two plans."""
    from avq.replay.bisect import bisect as bisect_bundles

    found = bisect_bundles(**arguments, host=call.host(), report=call.report)
    return call.answer(found.summary(), found.tables(), found.closing(), yes=found.answer_is_yes)
