"""Every command: parse, one library call, exit code (0 fine, 1 the answer is no, 2 wrong request, 3 not here)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from avq import __version__
from avq.cli_kit import AvqGroup, Call, DefaultCommandGroup, command, model_options, ray_option
from avq.cli_log import log

_PATH = click.Path(path_type=Path)


@click.group(cls=AvqGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="avq")
def cli() -> None:
    """Build INT8 detection engines that are measured, serve them inside a latency budget, and say why."""


@command(cli)
@click.option(
    "-o", "--output", type=_PATH, default=Path("avq-demo"), show_default=True, help="where to write"
)
@click.option("--frames", type=click.IntRange(min=1), default=300, show_default=True, help="frames to serve")
def demo(call: Call, output: Path, frames: int) -> int:
    """The whole story on built-in scenes: build, evaluate, serve, report. No arguments, no network."""
    from avq.demo import run_demo

    result = run_demo(output, frames=frames, report=call.report)
    return call.answer(result.summary(), result.tables(), result.closing())


@command(cli)
def doctor(call: Call) -> int:
    """What can be built and run on this machine, and why not."""
    from avq.doctor import examine, rows

    findings = examine()
    return call.answer(findings, [("What this machine can do", rows(findings))])


@command(cli)
def plugins(call: Call) -> int:
    """Every installed plugin: version, owner, hooks, what it brings, options with types and defaults."""
    from avq.plugins import plugin_tables

    listing = call.host().listing()
    return call.answer({"plugins": listing}, plugin_tables(listing))


@command(cli)
@click.argument("model", type=_PATH, required=False)
@click.option("--data", type=_PATH, help="calibration pictures: a folder, or a set with index.csv")
@click.option("--strategy", help="a registered quantizer, or float  [default: static]")
@click.option("--target", help="cpu, onnxruntime, openvino, tensorrt, tensorrt-rtx  [default: cpu]")
@click.option("--option", "options", multiple=True, metavar="K=V", help="an option of the strategy")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="wanted p50 of the engine")
@click.option("--max-drop", type=click.FloatRange(min=0), help="tolerated loss in percent")
@click.option("--no-gate", is_flag=True, help="write the bundle even when it is refused, with accepted:false")
@click.option("--labels", type=_PATH, help="COCO json for the pictures")
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--calibration", type=_PATH, help="an .avqcal file instead of a calibration pass")
@model_options
@click.option("--threads", type=click.IntRange(min=1), help="threads of the engine  [default: 1]")
@click.option("--gpu-arch", help="compute capabilities for GPU targets, such as sm89")
@click.option("--dla", is_flag=True, default=None, help="also what DLA takes, for tensorrt")
@click.option("--recipe", type=_PATH, help="a TOML recipe; flags override it")
@ray_option
@click.option("-o", "--output", type=_PATH, help="the bundle folder to write")
def build(call: Call, recipe: Path | None, ray: str | None, **flags: Any) -> int:
    """Build a bundle: calibrate, plan, try every engine, and pass it through the gate."""
    from avq.build import build as build_bundle
    from avq.config import recipe_from

    outcome = build_bundle(recipe_from(recipe, flags), call.host(), call.report, ray=ray)
    return call.answer(outcome.summary(), outcome.tables(), outcome.closing(), yes=outcome.answer_is_yes)


@cli.group(cls=DefaultCommandGroup, default="run")
def calibrate() -> None:
    """Histograms of a model's activations: avq calibrate MODEL --data DIR -o FILE, or merge, or thresholds."""


@command(calibrate, name="run", hidden=True)
@click.argument("model", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="calibration pictures")
@click.option("--shard", metavar="I/N", help="only the pictures of shard I of N, counted from 0")
@ray_option
@model_options
@click.option("-o", "--output", type=_PATH, required=True, help="the .avqcal file to write")
def calibrate_run(call: Call, **arguments: Any) -> int:
    """Count one model's activations over pictures."""
    from avq.build.calibrate.commands import calibrate_model

    return call.answer(calibrate_model(**arguments, host=call.host(), report=call.report))


@command(calibrate)
@click.argument("files", type=_PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, required=True, help="the .avqcal file to write")
def merge(call: Call, files: tuple[Path, ...], output: Path) -> int:
    """Add the counts of shards of one calibration."""
    from avq.build.calibrate.commands import merge_files

    return call.answer(merge_files(files, output))


@command(calibrate)
@click.argument("file", type=_PATH)
@click.option(
    "--option", "options", multiple=True, metavar="K=V", help="calibrator, percentile, bits, symmetric"
)
def thresholds(call: Call, file: Path, options: tuple[str, ...]) -> int:
    """Ranges of every tensor by any method, from counts alone: no inference."""
    from avq.build.calibrate.commands import thresholds_of
    from avq.config import key_values

    answer = thresholds_of(file, key_values(options))
    rows = [{"tensor": name, **values} for name, values in answer["tensors"].items()]
    return call.answer(answer, [("Thresholds", rows)])


@command(cli, name="eval")
@click.argument("subject", metavar="BUNDLE|MODEL", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="pictures")
@click.option("--labels", type=_PATH, help="COCO json")
@click.option("--map", "maps", multiple=True, metavar="A=B,C", help="label category = model classes")
@click.option("--reference", type=_PATH, help="a bundle or model whose boxes are the truth")
@click.option("--drift", "drifted", is_flag=True, help="do these pictures look like the calibrated ones?")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@model_options
def evaluate(call: Call, drifted: bool, **arguments: Any) -> int:
    """Accuracy against labels, fidelity to the float model, or (--drift) whether the pictures are still usual."""
    if drifted:
        from avq.assess.drift import closing, drift, tables

        moved = drift(**arguments, host=call.host(), report=call.report)
        return call.answer(moved, tables(moved), closing(moved), yes=not moved["drift"])
    from avq.assess.evaluate import evaluate as evaluate_subject

    answer = evaluate_subject(**arguments, host=call.host(), report=call.report)
    return call.answer(answer)


@command(cli)
@click.argument("bundles", metavar="BUNDLE...", type=_PATH, nargs=-1, required=True)
@click.option("--frames", type=click.IntRange(min=10), default=200, show_default=True, help="rounds to time")
def bench(call: Call, bundles: tuple[Path, ...], frames: int) -> int:
    """Time bundles interleaved; ratio = time(a) / time(b) with its 95 % interval."""
    from avq.assess.bench import bench as bench_bundles

    answer = bench_bundles(bundles, rounds=frames, host=call.host())
    return call.answer(answer, [("Latency", answer["entries"]), ("Ratios, paired", answer["ratios"])])


@command(cli, name="compile")
@click.argument("path", metavar="BUNDLE", type=_PATH)
@click.option("--target", help="tensorrt, tensorrt-rtx, onnxruntime ...  [default: the bundle's]")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="wanted p50 of the engine")
@click.option("--trusted", type=_PATH, multiple=True, metavar="KEY.pub", help="who must have signed it")
@click.option(
    "--calibrate", type=click.Choice(["entropy", "minmax"]), help="by TensorRT 10 itself, on --data"
)
@click.option(
    "--dla-core", type=click.IntRange(min=0), help="build for DLA (TensorRT 10), the rest on the GPU"
)
@click.option("--data", type=_PATH, help="pictures for --calibrate")
@click.option("-o", "--output", type=_PATH, help="another bundle folder  [default: in its place]")
def compile_(call: Call, **arguments: Any) -> int:
    """On the vehicle: build the engine of this machine, prove it on the golden frames, time it, put it in place."""
    from avq.assess.compile import closing, compile_bundle

    answer = compile_bundle(**arguments, host=call.host(), report=call.report)
    return call.answer(answer, closing=closing(answer), yes=answer["accepted"])


@command(cli)
@click.argument("config", type=_PATH, required=False)
@click.option("--bundle", type=_PATH, help="the bundle to serve")
@click.option("--source", metavar="URI", help="scene://, a file, a folder, rtsp://, v4l2://, log.mcap")
@click.option("--log", type=_PATH, help="record an MCAP log")
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
@click.option("--bundle", "bundles", type=_PATH, multiple=True, required=True, help="to replay with")
@ray_option
@click.option(
    "--baseline", type=_PATH, help="a reference, a folder of them, or another bundle to compare with"
)
@click.option("--accept", is_flag=True, help="write the reference --baseline names")
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True, help="runs to accept after")
@click.option("--report", "report_folder", type=_PATH, metavar="DIR", help="report.html, diff.md, both.mcap")
@click.option("--mine", "mine_folder", type=_PATH, metavar="DIR", help="write the strangest frames as a set")
@click.option(
    "--mine-count", type=click.IntRange(min=1), default=32, show_default=True, help="at most so many"
)
@click.option("--licence", default="not stated", show_default=True, help="of mined pictures, for index.csv")
@click.option("--config", type=_PATH, help="a run configuration: its budget and modes decide")
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
    from avq.replay.asked import replay_asked

    outcome = replay_asked(**flags, host=call.host(), report=call.report)
    return call.answer(outcome.summary(), outcome.tables(), outcome.closing(), yes=outcome.answer_is_yes)


@command(cli)
@click.argument("log", metavar="LOG")
@click.option("--good", type=_PATH, required=True, help="the bundle that is right")
@click.option("--bad", type=_PATH, required=True, help="the bundle that differs")
@click.option("--frames", type=click.IntRange(min=1), help="replay only so many frames")
@click.option("--report", "report_folder", type=_PATH, metavar="DIR", help="report.html, diff.md, both.mcap")
def bisect(call: Call, **arguments: Any) -> int:
    """Which groups of the bad bundle's plan cause a difference on a log, by replaying mixtures of the two plans."""
    from avq.replay.bisect import bisect as bisect_bundles

    found = bisect_bundles(**arguments, host=call.host(), report=call.report)
    return call.answer(found.summary(), found.tables(), found.closing(), yes=found.answer_is_yes)


@command(cli)
@click.argument("subject", metavar="BUNDLE|MODEL|FILE", type=_PATH)
def inspect(call: Call, subject: Path) -> int:
    """What a bundle, model, calibration file, calibration cache or AIMET encodings file holds."""
    from avq.assess.inspection import inspect as inspect_subject
    from avq.assess.inspection import tables

    answer = inspect_subject(subject)
    return call.answer(answer, tables(answer))


@command(cli)
@click.argument("bundle", type=_PATH)
@click.option("--format", "kind", required=True, help="trt-cache, or aimet")
@click.option("--version", help="aimet: 0.6.1, 1.0.0, 2.0.0; trt-cache: 8501 for TensorRT 8.5.1")
@click.option("-o", "--output", type=_PATH, required=True, help="the file to write")
def export(call: Call, bundle: Path, kind: str, version: str | None, output: Path) -> int:
    """A bundle's scales as a TensorRT calibration cache or AIMET encodings; what they cannot say is listed."""
    from avq.assess.export import export as export_bundle

    answer = export_bundle(bundle, kind, output, version)
    unsaid = [{"why": why, "tensors": len(names)} for why, names in answer["unsaid"].items()]
    return call.answer(answer, [("Not in the file", unsaid)], [f"{answer['entries']} grids: {output}"])


@command(cli)
@click.argument("a", metavar="BUNDLE_A", type=_PATH)
@click.argument("b", metavar="BUNDLE_B", type=_PATH)
def diff(call: Call, a: Path, b: Path) -> int:
    """What two bundles decided differently; exit code 1 when anything differs."""
    from avq.assess.differences import diff as diff_bundles

    answer = diff_bundles(a, b)
    rows: list[Mapping[str, object]] = list(answer["differences"])
    return call.answer(answer, [("Differences", rows)], yes=not rows)


@command(cli)
@click.argument("model", type=_PATH)
@click.option("--target", default="tensorrt", show_default=True, help="whose rules")
def lint(call: Call, model: Path, target: str) -> int:
    """What a runtime would reject or, worse, silently misread."""
    from avq.assess.linting import lint_file

    answer = lint_file(model, target)
    return call.answer(
        answer,
        [("Findings", answer["findings"])],
        yes=not any(f["severity"] == "error" for f in answer["findings"]),
    )


@cli.group(cls=AvqGroup)
def bundle() -> None:
    """Keys and signatures of bundles."""


@command(bundle)
@click.option("-o", "--output", type=_PATH, required=True, help="the private key to write; .pub beside it")
def keygen(call: Call, output: Path) -> int:
    """Make an Ed25519 key pair: the private key signs, the public one goes to the vehicles."""
    from avq.assess.trust import keygen as make_pair

    return call.answer(make_pair(output))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=_PATH)
@click.option("--key", type=_PATH, required=True, help="the private key")
def sign(call: Call, path: Path, key: Path) -> int:
    """Check every part of a bundle and sign its manifest."""
    from avq.assess.trust import sign as sign_bundle

    return call.answer(sign_bundle(path, key))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=_PATH)
@click.option("--trusted", type=_PATH, multiple=True, metavar="KEY.pub", help="a public key that may sign")
def verify(call: Call, path: Path, trusted: tuple[Path, ...]) -> int:
    """Check that a bundle is whole, and signed by a trusted key when one is named."""
    from avq.assess.trust import verify as verify_bundle

    return call.answer(verify_bundle(path, trusted))


@cli.group(cls=AvqGroup)
def config() -> None:
    """Check configuration files, or print their schema."""


@command(config)
@click.argument("file", type=_PATH)
def check(call: Call, file: Path) -> int:
    """Check a run or recipe file; errors name file:line and the nearest valid key."""
    from avq.run_check import check_config

    return call.answer(check_config(file, call.host()))


@command(config)
@click.argument("kind", type=click.Choice(["run", "recipe"]), default="run")
def schema(call: Call, kind: str) -> int:
    """The JSON schema of a configuration file."""
    from avq.config import json_schema

    return call.answer(json_schema(kind), always_json=True)


cli.add_command(log)


def main() -> None:
    """Entry point of the ``avq`` command."""
    sys.exit(cli.main(standalone_mode=True))
