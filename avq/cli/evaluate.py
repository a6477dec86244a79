"""What a bundle or model is worth: accuracy, time, contents, differences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, cli, command, model_options


@command(cli, name="eval")
@click.argument("subject", metavar="BUNDLE|MODEL", type=PATH)
@click.option("--data", type=PATH, required=True, help="pictures")
@click.option("--labels", type=PATH, help="COCO json")
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--reference", type=PATH, help="a bundle or model whose boxes are the truth")
@click.option("--drift", "drifted", is_flag=True, help="do these pictures look like the calibrated ones?")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="threads of the engine"
)
@model_options
def evaluate(call: Call, drifted: bool, **arguments: Any) -> int:
    """Accuracy against labels, fidelity to the float model, or (--drift) whether the pictures are still usual."""
    if drifted:
        from avq.commands.evaluate import closing, drift, tables

        moved = drift(**arguments, host=call.host(), report=call.report)
        return call.answer(moved, tables(moved), closing(moved), yes=not moved["drift"])
    from avq.commands.evaluate import evaluate as evaluate_subject

    answer = evaluate_subject(**arguments, host=call.host(), report=call.report)
    return call.answer(answer)


@command(cli)
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@click.option("--frames", type=click.IntRange(min=10), default=200, show_default=True, help="rounds to time")
def bench(call: Call, bundles: tuple[Path, ...], frames: int) -> int:
    """Time bundles interleaved; ratio = time(a) / time(b) with its 95 % interval."""
    from avq.commands.bench import bench as bench_bundles

    answer = bench_bundles(bundles, rounds=frames, host=call.host())
    return call.answer(answer, [("Latency", answer["entries"]), ("Ratios, paired", answer["ratios"])])


@command(cli)
@click.argument("subject", metavar="BUNDLE|MODEL|FILE", type=PATH)
def inspect(call: Call, subject: Path) -> int:
    """What a bundle, model, calibration file, calibration cache or AIMET encodings file holds."""
    from avq.commands.inspect import inspect as inspect_subject
    from avq.commands.inspect import tables

    answer = inspect_subject(subject)
    return call.answer(answer, tables(answer))


@command(cli)
@click.argument("a", metavar="BUNDLE_A", type=PATH)
@click.argument("b", metavar="BUNDLE_B", type=PATH)
def diff(call: Call, a: Path, b: Path) -> int:
    """What two bundles decided differently; exit code 1 when anything differs."""
    from avq.builder.plan_diff import diff as diff_bundles

    answer = diff_bundles(a, b)
    rows: list[Mapping[str, object]] = list(answer["differences"])
    return call.answer(answer, [("Differences", rows)], yes=not rows)
