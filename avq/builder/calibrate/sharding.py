"""Calibration on many workers: its pictures cut into shards, their counts merged exactly."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.avqcal import CalibrationFile, Shard
from avq.builder.calibrate.run import CalibrationRun
from avq.errors import CalibrationError
from avq.parallel import WorkerPool
from avq.process import peak_rss_mb

#: Shards per worker: small ones lose little when a worker dies, and finish together.
_PER_WORKER = 4


def spread(run: CalibrationRun, pool: WorkerPool, keep: Path) -> CalibrationFile:
    """Count on the workers of ``pool``: the file is that of ``run.run()``, bit for bit.

    Finished shards stay in the folder ``keep`` until all are complete: a new start resumes.

    Raises:
        CalibrationError, DataError: as ``run.run()``.
        MachineError: a shard's workers died every time.
    """
    pictures = {item.sha256 for item in run.items}
    of = max(1, min(len(pictures), _PER_WORKER * pool.worker_count))
    bare = replace(run, workers=1, progress=None, checkpoint=None)
    shards_done = _kept(keep, of, avqcal.set_digest(pictures))
    missing = [index for index in range(of) if index not in shards_done]
    run.resumed = sum(len(file.images) for file in shards_done.values())
    _report(run, run.resumed, len(pictures))
    keep.mkdir(parents=True, exist_ok=True)
    for index, file in zip(missing, pool.map(partial(_count, bare, of), missing), strict=True):
        avqcal.write(keep / f"{index}.avqcal", file)
        shards_done[index] = file
        run.inferences += len(file.images) * file.origin.passes
        _report(run, sum(len(file.images) for file in shards_done.values()), len(pictures))
    return _merged(run, pool, keep, [shards_done[index] for index in range(of)])


def _count(run: CalibrationRun, of: int, index: int) -> CalibrationFile:
    part = replace(run, part=(index, of))
    try:
        return part.run()
    finally:
        part.close()


def _merged(
    run: CalibrationRun, pool: WorkerPool, keep: Path, files: Sequence[CalibrationFile]
) -> CalibrationFile:
    """Merge shards; where kept ones are of another model or runtime, count all again, once."""
    try:
        return avqcal.merge(files)
    except CalibrationError:
        if not run.resumed:
            raise
        shutil.rmtree(keep, ignore_errors=True)
        return spread(run, pool, keep)


def _kept(keep: Path, of: int, whole: str) -> dict[int, CalibrationFile]:
    shards_done = {}
    for index in range(of):
        try:
            file = avqcal.read(keep / f"{index}.avqcal")
        except CalibrationError:
            continue
        # A set of one shard is complete when it is counted
        if file.shard == Shard(of, (index,), whole) or (file.shard is None and of == 1):
            shards_done[index] = file
    return shards_done


def _report(run: CalibrationRun, done: int, goal: int) -> None:
    if run.progress is not None:
        run.progress(done, goal)


class CalibrateJson(TypedDict):
    """Object of ``avq calibrate --json``."""

    images: int
    tensors: int
    seconds: float
    peak_rss_mb: float
    digest: str
    inferences: int
    resumed: int
    not_finite: list[str]
    file: str


def run_calibrate(run: CalibrationRun, output: Path, pool: WorkerPool | None = None) -> CalibrateJson:
    """Run a calibration, in this process or a worker pool, and write ``output``.

    A checkpoint next to ``output`` lets the next call resume; it is deleted at the end.
    """
    started = time.monotonic()
    avqcal.check_writable(output)
    if run.checkpoint is None:
        run.checkpoint = output.with_name(f".{output.name}.checkpoint")
    shards = output.with_name(f".{output.name}.shards")
    try:
        data = spread(run, pool, shards) if pool is not None and pool.is_parallel else run.run()
    finally:
        run.close()
    avqcal.write(output, data)
    avqcal.discard(run.checkpoint)
    shutil.rmtree(shards, ignore_errors=True)
    return {
        "images": len(data.images),
        "tensors": len(data.histograms),
        "seconds": round(time.monotonic() - started, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "digest": data.digest,
        "inferences": run.inferences,
        "resumed": run.resumed,
        "not_finite": sorted(name for name, h in data.histograms.items() if h.nans or h.infinities),
        "file": str(output),
    }
