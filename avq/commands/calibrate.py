"""``avq calibrate``: count activations, merge shards, compute thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.calibration import calibration_run
from avq.builder.calibrate.run import ThresholdsJson, thresholds_table
from avq.builder.calibrate.sharding import CalibrateJson, run_calibrate
from avq.builder.frontend.analyse import analyse_for_command
from avq.builder.pictures.dataset import open_calibrating_set
from avq.errors import RequestError, nearest
from avq.parallel import worker_pool
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.toolbox import calibration_tensors
from avq.types import CALIBRATORS


class MergeJson(TypedDict):
    """Object of ``avq calibrate merge --json``."""

    images: int
    tensors: int
    digest: str
    file: str
    complete: bool


def calibrate_model(
    *,
    model: Path,
    data: Path,
    output: Path,
    shard: str | None,
    decoder: str | None,
    preprocess: str | None,
    classes: str | None,
    host: PluginHost,
    report: Reporter,
    ray: str | None = None,
) -> CalibrateJson:
    """Count the activations of a model over pictures, and write an .avqcal file.

    Args:
        model: float ONNX file.
        data: folder of pictures.
        output: .avqcal file to write.
        shard: "I/N", counted from 0, to use one part of the pictures; None uses all.
        decoder: head family, "none", or None to recognise it.
        preprocess: preset name, JSON file, or None to search it.
        classes: file with class names, "coco", or None to read the metadata.
        host: loaded plugins.
        report: progress.
        ray: address of a Ray cluster; None runs in this process.

    Raises:
        RequestError: ``shard`` is not I/N, or is given together with ``ray``.
        DataError, ModelError, CalibrationError: pictures, model or their combination cannot be used.
    """
    if ray is not None and shard is not None:
        raise RequestError(
            "--shard cannot be combined with --ray",
            seen=f"--shard {shard} and --ray {ray}",
            fix="drop one of them",
        )
    pictures = open_calibrating_set(data, report)
    request, analysis = analyse_for_command(
        model, pictures, host, report, decoder=decoder, preprocess=preprocess, classes=classes
    )
    tensors = calibration_tensors(analysis.model.view)
    run = calibration_run(request, analysis, pictures, tensors, report, part=_part(shard))
    with worker_pool(ray) as pool:
        return run_calibrate(run, output, pool)


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return (0, 1)
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise RequestError("--shard must read I/N", seen=text, fix="for example: --shard 0/4 ... --shard 3/4")
    return int(index), int(count)


def merge_files(files: Sequence[Path], output: Path) -> MergeJson:
    """Add the counts of shards and write them to ``output``.

    Raises:
        CalibrationError: the files have different settings, or share pictures.
    """
    data = avqcal.merge_paths(files)
    avqcal.write(output, data)
    return {
        "images": len(data.images),
        "tensors": len(data.histograms),
        "digest": data.digest,
        "file": str(output),
        "complete": data.shard is None,
    }


_THRESHOLD_OPTIONS = ("calibrator", "percentile", "bits", "symmetric")


def thresholds_of(file: Path, options: Mapping[str, str]) -> ThresholdsJson:
    """Compute the range of every tensor by one calibrator, without inference.

    Raises:
        RequestError: unknown option, or a value out of range.
    """
    for name in options:
        if name not in _THRESHOLD_OPTIONS:
            raise RequestError(
                f"unknown option '{name}'", seen="--option", fix=nearest(name, _THRESHOLD_OPTIONS)
            )
    calibrator = options.get("calibrator", "entropy")
    chosen = next((c for c in CALIBRATORS if c == calibrator), None)
    if chosen is None:
        raise RequestError(
            f"unknown calibrator '{calibrator}'",
            seen="--option calibrator",
            fix=nearest(calibrator, CALIBRATORS),
        )
    return thresholds_table(
        avqcal.read(file),
        calibrator=chosen,
        bits=int(_number(options, "bits", "8", 2, 16)),
        symmetric=_switch(options.get("symmetric", "true")),
        percentile=_number(options, "percentile", "99.99", 50, 100),
    )


def _number(options: Mapping[str, str], name: str, default: str, low: float, high: float) -> float:
    text = options.get(name, default)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise RequestError(
            f"--option {name} is out of range", seen=text, fix=f"a number from {low:g} to {high:g}"
        )
    return value


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise RequestError("--option symmetric must be true or false", seen=text, fix="true or false")
    return text.lower() == "true"
