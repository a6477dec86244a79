"""Commands around a build: build, calibrate, compile, export and lint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, DefaultCommandGroup, cli, command, model_options, ray_option


@command(cli)
@click.argument("model", type=PATH, required=False)
@click.option("--data", type=PATH, help="calibration pictures: a folder, or a set with index.csv")
@click.option("--strategy", help="name of a quantizer plugin, or float  [default: static]")
@click.option("--target", help="cpu, onnxruntime, openvino, tensorrt, tensorrt-rtx  [default: cpu]")
@click.option("--option", "options", multiple=True, metavar="K=V", help="option of the strategy")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="limit for the engine's p50")
@click.option("--max-drop", type=click.FloatRange(min=0), help="tolerated accuracy loss in percent")
@click.option(
    "--gate", type=click.Choice(["full", "accuracy"]), help="accuracy: time is not judged  [default: full]"
)
@click.option("--no-gate", is_flag=True, help="write a refused bundle too, with accepted:false")
@click.option("--force", is_flag=True, help="replace an accepted bundle of another model")
@click.option(
    "--labels",
    type=PATH,
    help="labels of the pictures: COCO JSON, YOLO data.yaml or folder, or Pascal VOC XML",
)
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--calibration", type=PATH, help=".avqcal file to use instead of a calibration pass")
@model_options
@click.option("--threads", type=click.IntRange(min=1), help="number of engine threads  [default: 1]")
@click.option("--gpu-arch", help="compute capabilities of GPU targets, such as sm86,sm89")
@click.option("--dla", is_flag=True, default=None, help="also write what a DLA build needs (target tensorrt)")
@click.option("--recipe", type=PATH, help="TOML recipe; flags override it")
@ray_option
@click.option("-o", "--output", type=PATH, help="bundle folder to write")
def build(call: Call, recipe: Path | None, ray: str | None, **flags: Any) -> int:
    """Build a bundle: calibrate, plan, try every engine, check the result against the gate."""
    from avq.builder import build as build_bundle
    from avq.config import recipe_from

    outcome = build_bundle(recipe_from(recipe, flags), call.host(), call.report, ray=ray)
    return call.emit(outcome.summary(), outcome.tables(), outcome.footer(), ok=outcome.passed)


@cli.group(cls=DefaultCommandGroup, default="run")
def calibrate() -> None:
    """Histograms of a model's activations: avq calibrate MODEL --data DIR -o FILE, merge, thresholds."""


@command(calibrate, name="run", hidden=True)
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, help="calibration pictures")
@click.option("--shard", metavar="I/N", help="calibrate on shard I of N only, counted from 0")
@ray_option
@model_options
@click.option("-o", "--output", type=PATH, required=True, help=".avqcal file to write")
def calibrate_run(call: Call, **arguments: Any) -> int:
    """Count the activations of one model over the pictures."""
    from avq.commands.calibrate import calibrate_model

    return call.emit(calibrate_model(**arguments, host=call.host(), report=call.report))


@command(calibrate)
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help=".avqcal file to write")
def merge(call: Call, files: tuple[Path, ...], output: Path) -> int:
    """Add the counts of the shards of one calibration."""
    from avq.commands.calibrate import merge_files

    return call.emit(merge_files(files, output))


@command(calibrate)
@click.argument("file", type=PATH)
@click.option(
    "--option", "options", multiple=True, metavar="K=V", help="calibrator, percentile, bits, symmetric"
)
def thresholds(call: Call, file: Path, options: tuple[str, ...]) -> int:
    """Compute the range of every tensor from the counts, without inference."""
    from avq.commands.calibrate import thresholds_of
    from avq.config import key_values

    answer = thresholds_of(file, key_values(options))
    rows = [{"tensor": name, **values} for name, values in answer["tensors"].items()]
    return call.emit(answer, [("Thresholds", rows)])


@command(cli, name="compile")
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--target", help="tensorrt, tensorrt-rtx, onnxruntime, ...  [default: the bundle's]")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="limit for the engine's p50")
@click.option(
    "--trusted",
    type=PATH,
    multiple=True,
    metavar="KEY.pub",
    help="public key that must have signed the bundle",
)
@click.option(
    "--calibrate", type=click.Choice(["entropy", "minmax"]), help="let TensorRT 10 calibrate on --data"
)
@click.option(
    "--dla-core", type=click.IntRange(min=0), help="build for this DLA core (TensorRT 10), GPU for the rest"
)
@click.option("--data", type=PATH, help="pictures for --calibrate")
@click.option("-o", "--output", type=PATH, help="bundle folder to write  [default: replace BUNDLE]")
def compile_(call: Call, **arguments: Any) -> int:
    """Build, verify and time the engine of this machine, and put it into the bundle."""
    from avq.commands.compile import compile_bundle, footer

    answer = compile_bundle(**arguments, host=call.host(), report=call.report)
    return call.emit(answer, footer=footer(answer), ok=answer["accepted"])


@command(cli)
@click.argument("bundle", type=PATH)
@click.option("--format", "kind", required=True, help="trt-cache, or aimet")
@click.option("--version", help="aimet: 0.6.1, 1.0.0, 2.0.0; trt-cache: 8501 for TensorRT 8.5.1")
@click.option("-o", "--output", type=PATH, required=True, help="file to write")
def export(call: Call, bundle: Path, kind: str, version: str | None, output: Path) -> int:
    """Export a bundle's scales as a TensorRT calibration cache or AIMET encodings."""
    from avq.commands.export import export as export_bundle

    answer = export_bundle(bundle, kind, output, version)
    omitted = [{"why": why, "tensors": len(names)} for why, names in answer["unsaid"].items()]
    return call.emit(answer, [("Not in the file", omitted)], [f"{answer['entries']} grids: {output}"])


@command(cli)
@click.argument("model", type=PATH)
@click.option("--target", default="tensorrt", show_default=True, help="runtime whose rules to check")
@click.option("--gpu-arch", help="also check these compute capabilities, such as sm75,sm89")
def lint(call: Call, model: Path, target: str, gpu_arch: str | None) -> int:
    """Report what a runtime would reject or silently misread."""
    from avq.commands.lint import lint_file

    answer = lint_file(model, target, [name for name in (gpu_arch or "").split(",") if name.strip()])
    return call.emit(
        answer,
        [("Findings", answer["findings"])],
        ok=not any(finding["severity"] == "error" for finding in answer["findings"]),
    )
