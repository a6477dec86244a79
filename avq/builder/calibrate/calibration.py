"""Calibration of one build: activation counts from a file, from the cache, or from a new pass."""

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
from avq.builder.calibrate.run import CalibrationRun, check_belongs, origin_of
from avq.builder.calibrate.sharding import run_calibrate
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.graph.view import view_of
from avq.builder.lower.model import Model
from avq.builder.pictures.dataset import CalibrationSet
from avq.builder.request import Request
from avq.engines.cache import cache_folder
from avq.errors import CalibrationError
from avq.progress import Reporter
from avq.toolbox import calibration_tensors
from avq.types import F64, AnyArray, MomentRequest

WORKERS = max(1, min(4, os.cpu_count() or 1))


class Calibration:
    """Activation statistics of one model on one picture set.

    Attributes:
        used: the file whose counts the plan was made from; None until a strategy collects statistics.
    """

    def __init__(
        self, request: Request, analysis: ModelAnalysis, pictures: CalibrationSet, report: Reporter
    ) -> None:
        self._request, self._analysis, self._pictures = request, analysis, pictures
        self._report = report
        self.used: CalibrationFile | None = None
        self._sums: dict[str, F64] = {}

    def collect(self, tensors: Sequence[str]) -> HistogramStats:
        """Collect statistics of ``tensors``; one pass serves every strategy and option on the same data.

        Args:
            tensors: activation tensors to count.

        Raises:
            CalibrationError: the given file does not belong to the model.
        """
        counted = sorted({*tensors, *calibration_tensors(self._analysis.model.view)})
        given = self._request.recipe.calibration
        self.used = self._from_file(given, tensors) if given is not None else self._cached(counted)
        return HistogramStats(self.used.histograms)

    def moments(self, requests: Sequence[MomentRequest]) -> Mapping[str, F64]:
        """Compute moments by key, float64, of the shapes that `MomentRequest` documents.

        Gram matrices are too large to cache: they run over the pictures again.
        """
        missing = [request for request in requests if request.key not in self._sums]
        model = self._analysis.model
        values = moments(
            model.proto,
            model.view,
            missing,
            self._pictures.items,
            self._analysis.spec,
            engine=self._request.reference,
        )
        self._sums.update({r.key: values[r.key] for r in missing if r.kind != "gram"})
        return {r.key: values[r.key] if r.key in values else self._sums[r.key] for r in requests}

    def adjusted(self, overrides: Mapping[str, AnyArray]) -> Calibration:
        """Return a calibration of the float network with these constants replaced, on the same pictures."""
        model = self._analysis.model
        changed = Model(model.proto)
        for name in sorted(overrides):
            changed.replace_constant(name, np.asarray(overrides[name]))
        analysis = replace(
            self._analysis, model=replace(model, view=view_of(changed.proto), proto=changed.proto)
        )
        # A given calibration file holds counts of the unchanged network.
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
        data = self._from_cache(path)
        if data is not None:
            return data
        run = calibration_run(self._request, self._analysis, self._pictures, tensors, self._report)
        path.parent.mkdir(parents=True, exist_ok=True)
        run_calibrate(run, path, self._request.pool)
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
        return cache_folder("calibration") / f"{key}.avqcal"


def calibration_run(
    request: Request,
    analysis: ModelAnalysis,
    pictures: CalibrationSet,
    tensors: Sequence[str],
    report: Reporter,
    *,
    part: tuple[int, int] = (0, 1),
) -> CalibrationRun:
    """Return a calibration pass that shows its progress."""
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
    """Shows (done, total) reports as steps of one progress bar."""

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
