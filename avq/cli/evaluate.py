"""Commands that examine bundles and models: eval, bench, inspect and diff."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, cli, command, model_options


@command(cli, name="eval")
@click.argument("subject", metavar="BUNDLE|MODEL", type=PATH)
@click.option("--data", type=PATH, required=True, help="pictures to evaluate on")
@click.option(
    "--labels",
    type=PATH,
    help="labels of the pictures: COCO JSON, YOLO data.yaml or folder, or Pascal VOC XML",
)
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--reference", type=PATH, help="bundle or model whose boxes count as ground truth")
@click.option("--drift", "drifted", is_flag=True, help="compare the pictures with the calibration pictures")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="number of engine threads"
)
@model_options
def evaluate(call: Call, drifted: bool, **arguments: Any) -> int:
    """Measure accuracy against labels, fidelity to a float model, or (--drift) drift of the pictures."""
    if drifted:
        from avq.commands.evaluate import drift, footer, tables

        result = drift(**arguments, host=call.host(), report=call.report)
        return call.emit(result, tables(result), footer(result), ok=not result["drift"])
    from avq.commands.evaluate import evaluate as evaluate_subject

    return call.emit(evaluate_subject(**arguments, host=call.host(), report=call.report))


@command(cli)
@click.argument("bundles", metavar="BUNDLE...", type=PATH, nargs=-1, required=True)
@click.option("--frames", type=click.IntRange(min=10), default=200, show_default=True, help="rounds to time")
def bench(call: Call, bundles: tuple[Path, ...], frames: int) -> int:
    """Time bundles in interleaved rounds. Ratio = time(a) / time(b), with its 95 % interval."""
    from avq.commands.bench import bench as bench_bundles

    answer = bench_bundles(bundles, rounds=frames, host=call.host())
    return call.emit(answer, [("Latency", answer["entries"]), ("Paired ratios", answer["ratios"])])


@command(cli)
@click.argument("subject", metavar="BUNDLE|MODEL|FILE", type=PATH)
def inspect(call: Call, subject: Path) -> int:
    """Show the contents of a bundle, model, .avqcal file, calibration cache or AIMET encodings file."""
    from avq.commands.inspect import inspect as inspect_subject
    from avq.commands.inspect import tables

    answer = inspect_subject(subject)
    return call.emit(answer, tables(answer))


@command(cli)
@click.argument("a", metavar="BUNDLE_A", type=PATH)
@click.argument("b", metavar="BUNDLE_B", type=PATH)
def diff(call: Call, a: Path, b: Path) -> int:
    """List the differences between the plans of two bundles. Exit code 1 if there are any."""
    from avq.builder.plan_diff import diff as diff_bundles

    answer = diff_bundles(a, b)
    rows: list[Mapping[str, object]] = list(answer["differences"])
    return call.emit(answer, [("Differences", rows)], ok=not rows)
