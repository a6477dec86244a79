"""From a model to a bundle, and to what others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from avq.cli.app import PATH, Call, DefaultCommandGroup, cli, command, model_options, ray_option


@command(cli)
@click.argument("model", type=PATH, required=False)
@click.option("--data", type=PATH, help="calibration pictures: a folder, or a set with index.csv")
@click.option("--strategy", help="a registered quantizer, or float  [default: static]")
@click.option("--target", help="cpu, onnxruntime, openvino, tensorrt, tensorrt-rtx  [default: cpu]")
@click.option("--option", "options", multiple=True, metavar="K=V", help="an option of the strategy")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="wanted p50 of the engine")
@click.option("--max-drop", type=click.FloatRange(min=0), help="tolerated loss in percent")
@click.option("--no-gate", is_flag=True, help="write the bundle even when it is refused, with accepted:false")
@click.option("--labels", type=PATH, help="COCO json for the pictures")
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--calibration", type=PATH, help="an .avqcal file instead of a calibration pass")
@model_options
@click.option("--threads", type=click.IntRange(min=1), help="threads of the engine  [default: 1]")
@click.option("--gpu-arch", help="compute capabilities for GPU targets, such as sm89")
@click.option("--dla", is_flag=True, default=None, help="also what DLA takes, for tensorrt")
@click.option("--recipe", type=PATH, help="a TOML recipe; flags override it")
@ray_option
@click.option("-o", "--output", type=PATH, help="the bundle folder to write")
def build(call: Call, recipe: Path | None, ray: str | None, **flags: Any) -> int:
    """Build a bundle: calibrate, plan, try every engine, and pass it through the gate."""
    from avq.builder import build as build_bundle
    from avq.config import recipe_from

    outcome = build_bundle(recipe_from(recipe, flags), call.host(), call.report, ray=ray)
    return call.answer(outcome.summary(), outcome.tables(), outcome.closing(), yes=outcome.answer_is_yes)


@cli.group(cls=DefaultCommandGroup, default="run")
def calibrate() -> None:
    """Histograms of a model's activations: avq calibrate MODEL --data DIR -o FILE, or merge, or thresholds."""


@command(calibrate, name="run", hidden=True)
@click.argument("model", type=PATH)
@click.option("--data", type=PATH, required=True, help="calibration pictures")
@click.option("--shard", metavar="I/N", help="only the pictures of shard I of N, counted from 0")
@ray_option
@model_options
@click.option("-o", "--output", type=PATH, required=True, help="the .avqcal file to write")
def calibrate_run(call: Call, **arguments: Any) -> int:
    """Count one model's activations over pictures."""
    from avq.commands.calibrate import calibrate_model

    return call.answer(calibrate_model(**arguments, host=call.host(), report=call.report))


@command(calibrate)
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, required=True, help="the .avqcal file to write")
def merge(call: Call, files: tuple[Path, ...], output: Path) -> int:
    """Add the counts of shards of one calibration."""
    from avq.commands.calibrate import merge_files

    return call.answer(merge_files(files, output))


@command(calibrate)
@click.argument("file", type=PATH)
@click.option(
    "--option", "options", multiple=True, metavar="K=V", help="calibrator, percentile, bits, symmetric"
)
def thresholds(call: Call, file: Path, options: tuple[str, ...]) -> int:
    """Ranges of every tensor by any method, from counts alone: no inference."""
    from avq.commands.calibrate import thresholds_of
    from avq.config import key_values

    answer = thresholds_of(file, key_values(options))
    rows = [{"tensor": name, **values} for name, values in answer["tensors"].items()]
    return call.answer(answer, [("Thresholds", rows)])


@command(cli, name="compile")
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--target", help="tensorrt, tensorrt-rtx, onnxruntime ...  [default: the bundle's]")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="wanted p50 of the engine")
@click.option("--trusted", type=PATH, multiple=True, metavar="KEY.pub", help="who must have signed it")
@click.option(
    "--calibrate", type=click.Choice(["entropy", "minmax"]), help="by TensorRT 10 itself, on --data"
)
@click.option(
    "--dla-core", type=click.IntRange(min=0), help="build for DLA (TensorRT 10), the rest on the GPU"
)
@click.option("--data", type=PATH, help="pictures for --calibrate")
@click.option("-o", "--output", type=PATH, help="another bundle folder  [default: in its place]")
def compile_(call: Call, **arguments: Any) -> int:
    """On the vehicle: build the engine of this machine, prove it on the golden frames, time it, put it in place."""
    from avq.commands.compile import closing, compile_bundle

    answer = compile_bundle(**arguments, host=call.host(), report=call.report)
    return call.answer(answer, closing=closing(answer), yes=answer["accepted"])


@command(cli)
@click.argument("bundle", type=PATH)
@click.option("--format", "kind", required=True, help="trt-cache, or aimet")
@click.option("--version", help="aimet: 0.6.1, 1.0.0, 2.0.0; trt-cache: 8501 for TensorRT 8.5.1")
@click.option("-o", "--output", type=PATH, required=True, help="the file to write")
def export(call: Call, bundle: Path, kind: str, version: str | None, output: Path) -> int:
    """A bundle's scales as a TensorRT calibration cache or AIMET encodings; what they cannot say is listed."""
    from avq.commands.export import export as export_bundle

    answer = export_bundle(bundle, kind, output, version)
    omitted = [{"why": why, "tensors": len(names)} for why, names in answer["unsaid"].items()]
    return call.answer(answer, [("Not in the file", omitted)], [f"{answer['entries']} grids: {output}"])


@command(cli)
@click.argument("model", type=PATH)
@click.option("--target", default="tensorrt", show_default=True, help="whose rules")
@click.option("--gpu-arch", help="also what these compute capabilities lack, such as sm75,sm89")
def lint(call: Call, model: Path, target: str, gpu_arch: str | None) -> int:
    """What a runtime would reject or, worse, silently misread."""
    from avq.commands.lint import lint_file

    answer = lint_file(model, target, [name for name in (gpu_arch or "").split(",") if name.strip()])
    return call.answer(
        answer,
        [("Findings", answer["findings"])],
        yes=not any(f["severity"] == "error" for f in answer["findings"]),
    )
