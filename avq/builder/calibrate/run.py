"""Calibration pass: every picture once, pictures in parallel, in memory independent of their number.

Workers run whole pictures on sessions of one thread, so the numbers do not depend on the core count; counting
is a commutative monoid, so they do not depend on the distribution of the work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import onnx

from avq.builder.calibrate import avqcal, ranges
from avq.builder.calibrate.avqcal import CalibrationFile, Origin, Shard
from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.observe import (
    Observation,
    Observer,
    PictureQueue,
    Worker,
    observe,
    opencv_on_one_thread,
)
from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.pictures.dataset import Item, refuse_unreadable, shard
from avq.engines.cpu import instruction_set
from avq.errors import CalibrationError, DataError
from avq.hookspecs import Engine
from avq.preprocess import spec_to_json
from avq.types import Calibrator, PreprocessSpec

Progress = Callable[[int, int], None]

#: Pictures between two checkpoints.
CHECKPOINT_EVERY = 32
#: Less than this is quicker to count again than to write.
CHECKPOINT_SECONDS = 3.0
#: Pictures per session when a picture needs several passes.
_PICTURES_PER_PASS = 8


@dataclass
class CalibrationRun:
    """One pass over a list of pictures; :meth:`run` returns the file.

    Attributes:
        model: the folded float model: one uint8 (1, 3, h, w) input.
        tensors: activation tensors to count.
        items: pictures; neither their order nor copies among them matter.
        spec: preprocessing of the pictures.
        graph_digest: digest of the float graph.
        engine: runtime to run on.
        workers: threads, each with its own session of one thread.
        progress: called as (pictures done, pictures in all) from the calling thread.
        checkpoint: file to resume from, rewritten after ``checkpoint_every`` pictures when
            ``checkpoint_seconds`` have passed since the last time; None for none.
        memory_limit_mb: of the outputs of one run; more are fetched in several passes.
        part: (index, of): count only that shard of ``items``.
        optimise: the runtime's graph rewrites.
        inferences: session runs on pictures so far.
        resumed: pictures taken over from the checkpoint.
    """

    model: onnx.ModelProto
    tensors: Sequence[str]
    items: Sequence[Item]
    spec: PreprocessSpec
    graph_digest: str
    engine: Engine
    workers: int = 2
    progress: Progress | None = None
    checkpoint: Path | None = None
    checkpoint_every: int = CHECKPOINT_EVERY
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    memory_limit_mb: int = 200
    part: tuple[int, int] = (0, 1)
    optimise: bool = True
    inferences: int = 0
    resumed: int = 0
    _workers: list[Worker] = field(default_factory=list)

    def run(self) -> CalibrationFile:
        """Count the pictures that the checkpoint does not cover.

        Raises:
            CalibrationError: unknown tensors, no pictures, a shard that does not exist.
            DataError: pictures cannot be read; lists them all.
        """
        _check_request(self.tensors, self.items, self.part, self.workers)
        observation = observe(self.model, self.tensors, self.memory_limit_mb)
        unique = {item.sha256: item for item in self.items}
        mine = shard(tuple(unique.values()), *self.part)
        start = self._start(observation)
        total = self._resume(start, {item.sha256 for item in mine})
        self.resumed = len(total.images)
        done = set(total.images)
        todo = [item for item in mine if item.sha256 not in done]
        self._report(self.resumed, len(mine))
        written_s = time.monotonic()
        for batch in self._batches(todo):
            total = self._counted(total, batch, observation, len(mine))
            due = time.monotonic() - written_s >= self.checkpoint_seconds
            if self.checkpoint is not None and due and len(total.images) < len(mine):
                avqcal.write(self.checkpoint, total)
                written_s = time.monotonic()
        return avqcal.merge([_completed(total, self.part[0])])

    def _start(self, observation: Observation) -> CalibrationFile:
        """Return the file before the first picture: nothing counted, no shard complete."""
        origin = origin_of(
            self.engine, self.spec, self.graph_digest, optimise=self.optimise, passes=len(observation.passes)
        )
        whole = avqcal.set_digest({item.sha256 for item in self.items})
        empty = {name: Histogram() for name in observation.tensors}
        return CalibrationFile(origin, (), empty, Shard(self.part[1], (), whole))

    def _resume(self, start: CalibrationFile, mine: set[str]) -> CalibrationFile:
        """Return the checkpoint when it is of this run, else ``start``."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return start
        try:
            saved = avqcal.read(self.checkpoint)
        except CalibrationError:
            return start
        same = saved.origin == start.origin and saved.shard == start.shard
        fits = set(saved.images) <= mine and set(saved.histograms) == set(start.histograms)
        return saved if same and fits else start

    def _batches(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        size = self.checkpoint_every if self.checkpoint is not None else max(len(items), 1)
        for at in range(0, len(items), size):
            yield items[at : at + size]

    def _counted(
        self, total: CalibrationFile, batch: Sequence[Item], observation: Observation, goal: int
    ) -> CalibrationFile:
        """Return ``total`` with the pictures of ``batch`` added."""
        passes = len(observation.passes)
        queue = PictureQueue(batch, _PICTURES_PER_PASS if passes > 1 else 1)
        while len(self._workers) < min(self.workers, len(batch)):
            self._workers.append(
                Worker(Observer(observation, self.engine, self.spec, optimise=self.optimise))
            )
        self._work(queue, len(total.images), goal)
        for worker in self._workers:
            worker.give(total.histograms)
        self.inferences += len(batch) * passes
        images = tuple(sorted((*total.images, *(item.sha256 for item in batch))))
        return replace(total, images=images)

    def _work(self, queue: PictureQueue, done: int, goal: int) -> None:
        try:
            with opencv_on_one_thread(), ThreadPoolExecutor(len(self._workers)) as pool:
                futures = [pool.submit(worker.count, queue) for worker in self._workers]
                try:
                    while not queue.finished():
                        self._report(done + queue.done, goal)
                finally:
                    queue.stop()
                for future in futures:
                    future.result()
        except DataError:
            refuse_unreadable(shard(self.items, *self.part))
            raise
        self._report(done + queue.done, goal)

    def close(self) -> None:
        for worker in self._workers:
            worker.observer.close()
        self._workers.clear()

    def _report(self, done: int, goal: int) -> None:
        if self.progress is not None:
            self.progress(done, goal)


def origin_of(
    engine: Engine, spec: PreprocessSpec, graph_digest: str, *, optimise: bool = True, passes: int = 1
) -> Origin:
    """Return the origin of a calibration with these settings on this machine."""
    return Origin(
        graph=graph_digest,
        preprocess=json.dumps(spec_to_json(spec), sort_keys=True, separators=(",", ":")),
        runtime=f"{engine.name} {engine.status().version}",
        optimisation="all" if optimise else "none",
        instruction_set=instruction_set(),
        passes=passes,
    )


def check_belongs(
    data: CalibrationFile, *, graph_digest: str, spec: PreprocessSpec, tensors: Sequence[str], name: str
) -> None:
    """Refuse counts of another model or preprocessing, and incomplete ones; runtimes may differ.

    Args:
        data: content of the file given with ``--calibration``.
        graph_digest: digest of the float graph of the build.
        spec: preprocessing of the build.
        tensors: activation tensors that the build needs.
        name: path of the file, for messages.

    Raises:
        CalibrationError: the counts do not fit the build, or cover a part of their set.
    """
    preprocess = json.dumps(spec_to_json(spec), sort_keys=True, separators=(",", ":"))
    unlike = []
    if data.origin.graph != graph_digest:
        unlike.append(f"graph: {data.origin.graph[:16]}, the model is {graph_digest[:16]}")
    if data.origin.preprocess != preprocess:
        unlike.append(f"preprocess: {data.origin.preprocess}, the build uses {preprocess}")
    missing = sorted(set(tensors) - set(data.histograms))
    if missing:
        unlike.append(f"tensors: {len(missing)} were not counted, such as {missing[0]}")
    if unlike:
        raise CalibrationError(
            f"{name} does not belong to this build", seen="; ".join(unlike), fix="avq calibrate this model"
        )
    if data.shard is not None:
        raise CalibrationError(
            f"{name} covers a part of its set only",
            seen=f"{len(data.shard.have)} of {data.shard.of} shards",
            fix="avq calibrate merge all shards",
        )


class TensorRange(TypedDict):
    """Range of one tensor: clipping range, threshold, scale, observed extremes, number of values."""

    low: float
    high: float
    threshold: float
    scale: float
    min: float
    max: float
    count: int


class ThresholdsJson(TypedDict):
    """Object of ``avq calibrate thresholds --json``."""

    tensors: dict[str, TensorRange]
    seconds: float
    inferences: int


def thresholds_table(
    data: CalibrationFile,
    *,
    calibrator: Calibrator = "entropy",
    bits: int = 8,
    symmetric: bool = True,
    percentile: float = 99.99,
) -> ThresholdsJson:
    """Compute the range of every tensor from its counts, without inference."""
    started = time.monotonic()
    stats = HistogramStats(data.histograms)
    table: dict[str, TensorRange] = {}
    for name in stats.tensors:
        histogram = data.histograms[name]
        limits = stats.range(name, calibrator, bits=bits, symmetric=symmetric, percentile=percentile)
        table[name] = {
            "low": limits.low,
            "high": limits.high,
            "threshold": limits.threshold,
            "scale": ranges.scale_of(limits, bits=bits, symmetric=symmetric),
            "min": histogram.minimum,
            "max": histogram.maximum,
            "count": histogram.count,
        }
    return {"tensors": table, "seconds": round(time.monotonic() - started, 3), "inferences": 0}


def _completed(total: CalibrationFile, index: int) -> CalibrationFile:
    part = total.shard
    return replace(total, shard=replace(part, have=(index,)) if part is not None else None)


def _check_request(
    tensors: Sequence[str], items: Sequence[Item], part: tuple[int, int], workers: int
) -> None:
    index, of = part
    if not tensors:
        raise CalibrationError("no tensors to calibrate", fix="name at least one activation tensor")
    if not items:
        raise CalibrationError(
            "there are no pictures to calibrate on", fix="give --data a folder of pictures"
        )
    if not 0 <= index < of:
        raise CalibrationError(
            "there is no such shard",
            seen=f"--shard {index}/{of}",
            fix=f"count from 0: 0/{of} ... {of - 1}/{of}",
        )
    if workers < 1:
        raise CalibrationError("at least one worker is needed", seen=f"{workers}", fix="give 1 or more")


__all__ = [
    "CalibrationRun",
    "check_belongs",
    "origin_of",
    "thresholds_table",
]
