"""Calibration as builds and ``avq calibrate`` ask for it: from a file, from the cache, or by running it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.avqcal import CalibrationFile
from avq.builder.calibrate.moments import moments
from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.calibrate.run import CalibrationRun, check_belongs, origin_of, thresholds_table
from avq.builder.calibrate.sharding import run_calibrate
from avq.builder.frontend.analyse import ModelAnalysis, analyse_for_command
from avq.builder.graph.view import view_of
from avq.builder.lower.model import Model
from avq.builder.pictures.dataset import CalibrationSet, open_set
from avq.builder.request import Request
from avq.errors import CalibrationError, RequestError, nearest
from avq.parallel import fleet_of
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.toolbox import calibration_tensors
from avq.types import CALIBRATORS, F64, AnyArray, MomentRequest

WORKERS = max(1, min(4, os.cpu_count() or 1))


class Calibration:
    """The calibration side of one build's workbench.

    Attributes:
        used: the file whose counts the plan was made from; None until a strategy asked.
    """

    def __init__(
        self, request: Request, analysis: ModelAnalysis, pictures: CalibrationSet, report: Reporter
    ) -> None:
        self._request, self._analysis, self._pictures = request, analysis, pictures
        self._report = report
        self.used: CalibrationFile | None = None
        self._sums: dict[str, F64] = {}

    def collect(self, tensors: Sequence[str]) -> HistogramStats:
        """Statistics of ``tensors``; one pass serves every strategy and every option on the same data."""
        wanted = sorted({*tensors, *calibration_tensors(self._analysis.model.view)})
        given = self._request.recipe.calibration
        self.used = self._from_file(given, tensors) if given is not None else self._cached(wanted)
        return HistogramStats(self.used.histograms)

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        """Answers by key; per-channel ones are asked of the pictures once, Gram matrices are too large to keep."""
        missing = [request for request in requests if request.key not in self._sums]
        model = self._analysis.model
        found = moments(
            model.proto,
            model.view,
            missing,
            self._pictures.items,
            self._analysis.spec,
            engine=self._request.reference,
        )
        self._sums.update({r.key: found[r.key] for r in missing if r.kind != "gram"})
        return {r.key: found[r.key] if r.key in found else self._sums[r.key] for r in requests}

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> Calibration:
        """The same pictures through the float network with these constants replaced."""
        model = self._analysis.model
        changed = Model(model.proto)
        for name in sorted(overrides):
            changed.replace_constant(name, np.asarray(overrides[name]))
        analysis = replace(
            self._analysis, model=replace(model, view=view_of(changed.proto), proto=changed.proto)
        )
        # Counts that were given are of the network as it was.
        request = replace(self._request, recipe=replace(self._request.recipe, calibration=None))
        return Calibration(request, analysis, self._pictures, self._report)

    def _from_file(self, path: Path, tensors: Sequence[str]) -> CalibrationFile:
        data = avqcal.read(path)
        check_belongs(
            data,
            graph_digest=self._analysis.model.view.digest,
            spec=self._analysis.spec,
            tensors=tensors,
            name=str(path),
        )
        return data

    def _cached(self, tensors: Sequence[str]) -> CalibrationFile:
        path = self._cache_path(tensors)
        found = self._from_cache(path)
        if found is not None:
            return found
        run = calibration_run(self._request, self._analysis, self._pictures, tensors, self._report)
        path.parent.mkdir(parents=True, exist_ok=True)
        run_calibrate(run, path, self._request.fleet)
        return avqcal.read(path)

    def _from_cache(self, path: Path) -> CalibrationFile | None:
        if not path.is_file():
            return None
        try:
            data = avqcal.read(path)
        except CalibrationError as error:
            self._report.warning(f"calibrating again: {error.what}")
            return None
        self._report.message(
            f"calibration: {len(data.images)} pictures taken from the cache ({path.stem[:12]})"
        )
        return data

    def _cache_path(self, tensors: Sequence[str]) -> Path:
        origin = origin_of(self._request.reference, self._analysis.spec, self._analysis.model.view.digest)
        images = avqcal.set_digest([item.sha256 for item in self._pictures.items])
        key = hashlib.sha256("\n".join([origin.key, images, *tensors]).encode()).hexdigest()
        return cache_folder() / f"{key}.avqcal"


def cache_folder() -> Path:
    """Where counts are kept between builds: $XDG_CACHE_HOME/avq/calibration, by content."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "avq" / "calibration"


def calibration_run(
    request: Request,
    analysis: ModelAnalysis,
    pictures: CalibrationSet,
    tensors: Sequence[str],
    report: Reporter,
    *,
    part: tuple[int, int] = (0, 1),
) -> CalibrationRun:
    """A pass that shows how far it is."""
    bar = _Bar(report)
    return CalibrationRun(
        analysis.model.proto,
        tensors,
        pictures.items,
        analysis.spec,
        analysis.model.view.digest,
        request.reference,
        workers=WORKERS,
        progress=bar.show,
        part=part,
    )


class _Bar:
    """(done, total) reports as steps of one progress bar."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._steps: Any = None
        self._shown = 0

    def show(self, done: int, total: int) -> None:
        if self._steps is None:
            self._steps = iter(self._report.track(range(total + 1), "calibration", total))
            next(self._steps, None)
        while self._shown < done:
            self._shown += 1
            next(self._steps, None)


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
) -> dict[str, Any]:
    """``avq calibrate MODEL --data DIR [--shard I/N] [--ray ADDRESS] -o FILE``: the keys of its --json."""
    if ray is not None and shard is not None:
        raise RequestError(
            "a shard is one machine's part", seen=f"--shard {shard} and --ray {ray}", fix="drop one of them"
        )
    pictures = open_set(data, report)
    request, analysis = analyse_for_command(
        model, pictures, host, report, decoder=decoder, preprocess=preprocess, classes=classes
    )
    tensors = calibration_tensors(analysis.model.view)
    run = calibration_run(request, analysis, pictures, tensors, report, part=_part(shard))
    with fleet_of(ray) as fleet:
        return run_calibrate(run, output, fleet)


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return (0, 1)
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise RequestError("a shard must read I/N", seen=text, fix="for example: --shard 0/4 ... --shard 3/4")
    return int(index), int(count)


def merge_files(files: Sequence[Path], output: Path) -> dict[str, Any]:
    """``avq calibrate merge``: add shards; refused when they are unlike or overlap."""
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


def thresholds_of(file: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """``avq calibrate thresholds``: every tensor's range by the method asked for, without inference."""
    for name in options:
        if name not in _THRESHOLD_OPTIONS:
            raise RequestError(f"no option '{name}'", seen=name, fix=nearest(name, _THRESHOLD_OPTIONS))
    calibrator = options.get("calibrator", "entropy")
    chosen = next((c for c in CALIBRATORS if c == calibrator), None)
    if chosen is None:
        raise RequestError(
            f"no calibrator '{calibrator}'", seen=calibrator, fix=nearest(calibrator, CALIBRATORS)
        )
    return thresholds_table(
        avqcal.read(file),
        calibrator=chosen,
        bits=int(_number(options, "bits", "8", 2, 16)),
        symmetric=_truth(options.get("symmetric", "true")),
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
            f"option {name} is not usable", seen=text, fix=f"a number from {low:g} to {high:g}"
        )
    return value


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise RequestError("option symmetric is not usable", seen=text, fix="true or false")
    return text.lower() == "true"
