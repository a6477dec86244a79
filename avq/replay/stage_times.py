"""Stage times on this machine: worst, p99 and mean, and paired with a reference bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from avq.clock import SystemClock
from avq.compare import Difference
from avq.daemon.modes import Opener, warm_up
from avq.daemon.step import Parts, step
from avq.errors import DataError
from avq.measure.latency import LatencySamples, ratio_interval
from avq.plugins import PluginHost
from avq.replay.log import EndOfLogError, FrameKey, Log, load_ahead
from avq.replay.result import ReplayResult
from avq.types import Frame, StageTimes

STAGES = ("preprocess", "infer", "decode", "total")
#: The first frames of a process are slower.
_WARM_UP = 2
#: Enough rounds for a confidence interval.
PAIRED_FRAMES = 120


class StageRow(TypedDict):
    """Times of one stage, in milliseconds."""

    stage: str
    mean_ms: float
    p99_ms: float
    worst_ms: float


class PairedRow(TypedDict):
    """Times of one stage with both bundles, and the ratio new / reference with its 95 % interval."""

    stage: str
    reference_mean_ms: float
    new_mean_ms: float
    reference_p99_ms: float
    new_p99_ms: float
    reference_worst_ms: float
    new_worst_ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class StageTable:
    """Stage times of a run.

    Attributes:
        ms: stage -> (frames,) float64 milliseconds.
        keys: camera and sequence number of each frame.
    """

    ms: Mapping[str, np.ndarray]
    keys: tuple[FrameKey, ...]

    def rows(self) -> list[StageRow]:
        return [self.row(stage) for stage in STAGES]

    def row(self, stage: str) -> StageRow:
        values = self.ms[stage]
        return {
            "stage": stage,
            "mean_ms": float(values.mean()),
            "p99_ms": float(np.percentile(values, 99)),
            "worst_ms": float(values.max()),
        }

    def slowest(self, stage: str) -> FrameKey:
        return self.keys[int(np.argmax(self.ms[stage]))]


@dataclass(frozen=True)
class PairedTimes:
    """Times of two bundles, alternating on the same pictures.

    Attributes:
        reference: times of the reference bundle.
        new: times of the new bundle.
        ratios: stage -> (median, low, high) of new / reference, 95 % interval.
    """

    reference: StageTable
    new: StageTable
    ratios: Mapping[str, tuple[float, float, float]]

    def rows(self) -> list[PairedRow]:
        """Return one row per stage: both bundles, and the ratio with its 95 % interval."""
        return [self._row(stage) for stage in STAGES]

    def _row(self, stage: str) -> PairedRow:
        before, after = self.reference.row(stage), self.new.row(stage)
        median, low, high = self.ratios[stage]
        return {
            "stage": stage,
            "reference_mean_ms": before["mean_ms"],
            "new_mean_ms": after["mean_ms"],
            "reference_p99_ms": before["p99_ms"],
            "new_p99_ms": after["p99_ms"],
            "reference_worst_ms": before["worst_ms"],
            "new_worst_ms": after["worst_ms"],
            "ratio": median,
            "low": low,
            "high": high,
        }


def table_of(result: ReplayResult) -> StageTable:
    """Return the stage times of a replay's frames."""
    answers = result.answers[_WARM_UP:] or result.answers
    return _table([answer.measured for answer in answers], [answer.key for answer in answers])


def time_bundle(log: Log, bundle: Path, host: PluginHost, frames: int = PAIRED_FRAMES) -> StageTable:
    """Time one bundle on the first pictures of the log, with nothing else running, to check limits."""
    return _measured(log, (bundle,), host, frames)[0]


def paired_times(
    log: Log, reference: Path, new: Path, host: PluginHost, frames: int = PAIRED_FRAMES
) -> PairedTimes:
    """Time both bundles on the first pictures of the log, alternating the order per picture.

    Raises:
        DataError: the log has no readable picture.
    """
    before, after = _measured(log, (reference, new), host, frames)
    ratios = {stage: ratio_interval(_samples(after, stage), _samples(before, stage)) for stage in STAGES}
    return PairedTimes(before, after, ratios)


def _measured(log: Log, bundles: Sequence[Path], host: PluginHost, frames: int) -> list[StageTable]:
    opener = Opener(host.running_engines(), families=host.decoders(), allow_unaccepted=True)
    with ExitStack() as stack:
        parts = []
        for path in bundles:
            opened = opener.open(path)
            stack.callback(opened.close)
            warm_up(opened.parts)
            parts.append(opened.parts)
        times, keys = _interleaved(log, parts, frames)
    return [_table(bundle_times, keys) for bundle_times in times]


def _interleaved(
    log: Log, bundles: Sequence[Parts], frames: int
) -> tuple[list[list[StageTimes]], list[FrameKey]]:
    clock = SystemClock()
    times: list[list[StageTimes]] = [[] for _ in bundles]
    keys: list[FrameKey] = []
    pictures = load_ahead(log.frames(), workers=log.workers)
    with closing(pictures), suppress(EndOfLogError):
        for frame, pixels in pictures:
            if pixels is None:
                continue
            picture = Frame(frame.camera, frame.seq, clock.now_ns(), pixels)
            order = range(len(bundles)) if len(keys) % 2 else reversed(range(len(bundles)))
            for index in order:
                times[index].append(step(picture, bundles[index], clock)[1])
            keys.append(frame.key)
            if len(keys) >= frames + _WARM_UP:
                break
    if not keys:
        raise DataError(f"the log {log.uri} holds no readable picture", fix="run 'avq log verify' on it")
    start = min(_WARM_UP, len(keys) - 1)
    return [bundle_times[start:] for bundle_times in times], keys[start:]


def _table(times: Sequence[StageTimes], keys: Sequence[FrameKey]) -> StageTable:
    ms = {
        stage: np.array([dict(frame.items())[stage] for frame in times], np.float64) / 1e6
        for stage in STAGES[:-1]
    }
    ms["total"] = ms["preprocess"] + ms["infer"] + ms["decode"]
    return StageTable(ms, tuple(keys))


def _samples(table: StageTable, stage: str) -> LatencySamples:
    return LatencySamples(np.maximum(1, np.round(table.ms[stage] * 1e6)).astype(np.int64))


def over_limits(table: StageTable, limits: Mapping[str, float]) -> list[Difference]:
    """Return exceeded limits, such as {"infer_p99_ms": 12.0, "total_worst_ms": 40.0}, with the slowest frame."""
    exceeded = []
    for name, limit in limits.items():
        stage, _, figure = name.partition("_")
        value = cast("Mapping[str, float]", table.row(stage))[figure]
        if not value <= limit:
            camera, frame = table.slowest(stage)
            exceeded.append(
                Difference(
                    frame, camera, f"timing.{name}", limit, value, f"{value:.2f} ms, limit {limit:g} ms"
                )
            )
    return exceeded


def slower(paired: PairedTimes, max_ratio: float) -> list[Difference]:
    """Return a difference when the lower end of the interval of new / reference lies above the limit."""
    median, low, high = paired.ratios["total"]
    if low <= max_ratio:
        return []
    camera, frame = paired.new.slowest("total")
    note = f"{median:.2f}x the reference's time (95 % interval {low:.2f} to {high:.2f}, limit {max_ratio:g})"
    return [Difference(frame, camera, "timing.total_ratio", max_ratio, median, note)]
