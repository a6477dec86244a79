"""Commands that serve frames: run, replay and bisect."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, cli, command, ray_option


@command(cli, service=True)
@click.argument("config", type=PATH, required=False)
@click.option("--bundle", type=PATH, help="bundle to serve")
@click.option("--source", metavar="URI", help="scene://, rtsp://, v4l2://, a file, a folder, or log.mcap")
@click.option("--log", type=PATH, help="MCAP log to record")
@click.option(
    "--log-on",
    type=click.Choice(["all", "miss"]),
    help="record all frames, or the seconds around each late frame",
)
@click.option(
    "--log-rotate-mb", type=click.FloatRange(min=0, min_open=True), help="start a new file at this size"
)
@click.option(
    "--log-keep-mb",
    type=click.FloatRange(min=0, min_open=True),
    help="delete the oldest files above this total",
)
@click.option("--frames", type=click.IntRange(min=1), help="stop after this many published frames")
@click.option(
    "--deadline-ms", type=click.FloatRange(min=0, min_open=True), help="limit from capture to publish"
)
@click.option("--every-frame", "policy", flag_value="every", help="process every frame")
@click.option("--newest", "policy", flag_value="newest", help="process the newest frame, drop older ones")
@click.option("--allow-unaccepted", is_flag=True, help="serve a bundle that the gate refused")
@click.option("--web", metavar="HOST:PORT", help="address of the web page  [default: 127.0.0.1:8787]")
@click.option("--no-web", "web", flag_value="off", help="open no port: no page, no metrics")
def run(
    call: Call,
    log: Path | None,
    log_on: str | None,
    log_rotate_mb: float | None,
    log_keep_mb: float | None,
    **flags: Any,
) -> int:
    """Serve a bundle on a camera, a file or a log, and count every frame."""
    from avq.serve import run_config, serve, summary_tables

    recorder = {"path": log, "log_on": log_on, "rotate_mb": log_rotate_mb, "keep_mb": log_keep_mb}
    read = partial(run_config, **flags, log=recorder)
    reread = read if flags["config"] is not None else None
    summary = serve(read(), call.host(), json_lines=call.json, reread=reread)
    code = call.emit(summary.as_json(), summary_tables(summary), one_line=True)
    return summary.exit_code or code


@command(cli)
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option("--bundle", "bundles", type=PATH, multiple=True, required=True, help="bundle to replay with")
@ray_option
@click.option("--baseline", type=PATH, help="reference, folder of references, or bundle to compare with")
@click.option("--accept", is_flag=True, help="write the reference that --baseline names")
@click.option(
    "--runs", type=click.IntRange(min=1), default=3, show_default=True, help="equal runs that --accept needs"
)
@click.option(
    "--report",
    "report_folder",
    type=PATH,
    metavar="DIR",
    help="folder for report.html, diff.md and both.mcap",
)
@click.option(
    "--mine",
    "mine_folder",
    type=PATH,
    metavar="DIR",
    help="write the most unusual frames as a set of pictures",
)
@click.option(
    "--mine-count",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="maximum number of mined frames",
)
@click.option(
    "--licence", default="not stated", show_default=True, help="licence of the mined frames, for index.csv"
)
@click.option("--config", type=PATH, help="run configuration to take budget and modes from")
@click.option(
    "--timing", type=click.Choice(["recorded", "scaled", "measured"]), help="stage times to replay with"
)
@click.option("--tier", type=click.Choice(["exact", "toleranced", "metric"]), help="how to compare results")
@click.option(
    "--by-loss", is_flag=True, help="against another bundle: tolerate 1 % lost or new boxes, 0.02 confidence"
)
@click.option("--every-frame", "policy", flag_value="every", help="process every frame")
@click.option("--newest", "policy", flag_value="newest", help="process the newest frame, drop older ones")
@click.option("--frames", type=click.IntRange(min=1), help="stop after this many published frames")
def replay(call: Call, **flags: Any) -> int:
    """Replay logs, videos, folders or scenes deterministically, and compare the results."""
    from avq.replay.batch import run_replay

    outcome = run_replay(**flags, host=call.host(), report=call.report)
    return call.emit(outcome.summary(), outcome.tables(), outcome.footer(), ok=outcome.passed)


@command(cli)
@click.argument("log", metavar="LOG")
@click.option("--good", type=PATH, required=True, help="bundle with the correct results")
@click.option("--bad", type=PATH, required=True, help="bundle with the different results")
@click.option("--frames", type=click.IntRange(min=1), help="replay only this many frames")
@click.option(
    "--report",
    "report_folder",
    type=PATH,
    metavar="DIR",
    help="folder for report.html, diff.md and both.mcap",
)
def bisect(call: Call, **arguments: Any) -> int:
    """Find the layer groups of a plan that cause a difference on a log, by replaying mixtures of two plans."""
    from avq.replay.bisect import bisect as bisect_bundles

    result = bisect_bundles(**arguments, host=call.host(), report=call.report)
    return call.emit(result.summary(), result.tables(), result.footer(), ok=result.passed)
