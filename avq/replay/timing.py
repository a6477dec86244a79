"""How long each stage of each frame takes on the replay clock: pure, the same plan for the same log and bundles."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from avq.clock import ReplayClock, SystemClock
from avq.daemon.step import Decodes, Parts, Prepares
from avq.errors import RequestError
from avq.hookspecs import Session
from avq.preprocess import Preprocessor
from avq.replay.log import FrameKey, Recorded
from avq.types import U8, Detections, Frame, ModelInput, PreprocessSpec, RawOutputs, StageTimes

Timing = Literal["recorded", "scaled", "measured"]
#: What a bundle's manifest says of its own bench: the ``metrics`` of a manifest.
Bench = Mapping[str, Any]


@dataclass(frozen=True)
class TimingPlan:
    """Stage durations by frame and bundle.

    Attributes:
        kind: "recorded", "scaled" or "measured".
        recorded: what the log says, by frame.
        typical: medians of the log, for frames it says nothing of; the queue is what replay finds out.
        infer_ns: typical inference time per bundle digest.
        remark: in words, what the plan rests on.
    """

    kind: Timing
    recorded: Mapping[FrameKey, Recorded]
    typical: StageTimes
    infer_ns: Mapping[str, int]
    remark: str

    def of(self, key: FrameKey, bundle: str) -> StageTimes:
        """Durations of one frame served with ``bundle`` (a digest)."""
        row = self.recorded.get(key)
        if row is None:
            return StageTimes(
                0,
                self.typical.preprocess_ns,
                self.infer_ns.get(bundle, self.typical.infer_ns),
                self.typical.decode_ns,
            )
        ratio = self.ratio(bundle, row.bundle)
        return StageTimes(0, row.times.preprocess_ns, round(row.times.infer_ns * ratio), row.times.decode_ns)

    def ratio(self, bundle: str, to: str) -> float:
        """Inference time of ``bundle`` over that of the bundle ``to``; 1 where nothing is known."""
        mine, theirs = self.infer_ns.get(bundle, 0), self.infer_ns.get(to, 0)
        return mine / theirs if mine and theirs else 1.0

    def cost_ns(self, bundle: str) -> float:
        """Typical service time of one frame: what the ladder knows of a mode."""
        infer_ns = self.infer_ns.get(bundle, self.typical.infer_ns)
        return float(self.typical.preprocess_ns + infer_ns + self.typical.decode_ns)


def plan_timing(
    asked: Timing | None,
    recorded: Mapping[FrameKey, Recorded],
    bundles: Mapping[str, Bench],
    known: Mapping[str, Bench],
) -> TimingPlan:
    """The plan for these bundles on that log.

    Args:
        asked: None takes "recorded" where the log has times of the first bundle, else "scaled".
        recorded: stage times of the log by frame; empty where it has none.
        bundles: digest -> bench figures of the bundles replayed, best mode first.
        known: the same of bundles that are not replayed (such as that of a reference), for ratios.

    Raises RequestError when recorded times are asked for and the log has none.
    """
    first = next(iter(bundles))
    on_road = _medians(recorded.values())
    if asked == "recorded" and not recorded:
        raise RequestError(
            "this log holds no stage times",
            seen="no /avq/timing messages",
            fix="--timing scaled takes the bundle's own bench; avq run --log records times",
        )
    kind: Timing = asked or ("recorded" if first in on_road else "scaled")
    typical = _typical(recorded.values())
    infer_ns = {digest: round(times) for digest, times in on_road.items()}
    for digest, bench in bundles.items():
        if digest not in infer_ns:
            infer_ns[digest] = _infer_ns(bench, infer_ns, known)
    if kind == "recorded" and first not in on_road and on_road:
        infer_ns[first] = round(next(iter(on_road.values())))
    return TimingPlan(kind, recorded, typical, infer_ns, _remark(kind, first, infer_ns, on_road))


def _medians(rows: Iterable[Recorded]) -> dict[str, float]:
    """Median inference time per bundle that served on the road, the one with most frames first."""
    times: dict[str, list[int]] = {}
    for row in rows:
        times.setdefault(row.bundle, []).append(row.times.infer_ns)
    by_frames = sorted(times.items(), key=lambda item: (-len(item[1]), item[0]))
    return {digest: float(median(values)) for digest, values in by_frames}


def _typical(rows: Iterable[Recorded]) -> StageTimes:
    listed = [row.times for row in rows]
    if not listed:
        return StageTimes(0, 0, 0, 0)
    stages = {name: round(median(dict(t.items())[name] for t in listed)) for name, _ in listed[0].items()}
    return StageTimes(0, stages["preprocess"], stages["infer"], stages["decode"])


def _infer_ns(bench: Bench, on_road: Mapping[str, int], known: Mapping[str, Bench]) -> int:
    """On the road's own scale where a bundle of the road has bench figures too, else as the bench measured."""
    for digest, road_ns in on_road.items():
        ratio = bench_ratio(bench, known[digest]) if digest in known else 0.0
        if ratio:
            return round(road_ns * ratio)
    return round(p50_ms(bench) * 1e6)


def bench_ratio(bench: Bench, other: Bench) -> float:
    """Time of one bundle over that of another, from their builds: paired with the same float engine if it can be.

    0 when either was never timed.
    """
    mine, theirs = _paired(bench), _paired(other)
    if mine and theirs and bench["float"].get("engine") == other["float"].get("engine"):
        return mine / theirs
    a, b = p50_ms(bench), p50_ms(other)
    return a / b if a and b else 0.0


def p50_ms(bench: Bench) -> float:
    """Of the bundle's engine, as its build measured it; 0 when it was not timed."""
    chosen = bench.get("chosen")
    value = chosen.get("p50_ms") if isinstance(chosen, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _paired(bench: Bench) -> float:
    """Ratio to the fastest float engine; 0 when it was not taken."""
    chosen = bench.get("chosen")
    ratio = chosen.get("ratio") if isinstance(chosen, Mapping) else None
    known = isinstance(ratio, list | tuple) and bool(ratio) and isinstance(bench.get("float"), Mapping)
    return float(ratio[0]) if ratio and known else 0.0


def _remark(kind: Timing, first: str, infer_ns: Mapping[str, int], on_road: Mapping[str, float]) -> str:
    if kind == "measured":
        return "stage times as they pass on this machine: decisions are not repeatable"
    if kind == "recorded":
        return "stage times as recorded on the road"
    if not infer_ns.get(first):
        return "nothing is known of the bundle's speed: recorded times, or none, are taken as they are"
    if on_road:
        ratio = infer_ns[first] / max(1.0, next(iter(on_road.values())))
        return f"recorded stage times, inference scaled by {ratio:.3f} for this bundle"
    return f"no recorded times: {infer_ns[first] / 1e6:.2f} ms per inference, as the bundle's build measured"


# An opened bundle whose stages take time on the replay clock, and are measured on the machine's.

#: Raw outputs that may wait to be decoded.
_BEHIND = 16
_MACHINE = SystemClock()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A network input made ahead, for bundles of that preprocessing."""

    spec: PreprocessSpec
    model_input: ModelInput
    spent_ns: int


class PrepareAhead:
    """Network inputs of pictures, on any number of threads."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self._mine = threading.local()

    def __call__(self, pixels: U8) -> Prepared:
        if not hasattr(self._mine, "preprocessor"):
            self._mine.preprocessor = Preprocessor(self._spec)
        before_ns = _MACHINE.now_ns()
        made = self._mine.preprocessor.prepare(pixels, copy=True)
        return Prepared(self._spec, made, _MACHINE.now_ns() - before_ns)


@dataclass
class Measured:
    """One frame's real nanoseconds, and its boxes when they are decoded."""

    preprocess_ns: int = 0
    infer_ns: int = 0
    decoded: Future[tuple[Detections, int]] | None = None
    decode_ns: int = 0

    def times(self) -> StageTimes:
        return StageTimes(0, self.preprocess_ns, self.infer_ns, self.decode_ns)


class Stages:
    """What the stages of all modes share: the clock, the plan, and what was measured frame by frame.

    Attributes:
        made: inputs prepared ahead, by frame; put here when a frame is offered.
        measured: per processed frame, in order.
    """

    def __init__(self, plan: TimingPlan, clock: ReplayClock) -> None:
        self.plan, self.clock = plan, clock
        self.made: dict[FrameKey, Prepared] = {}
        self.measured: list[Measured] = []
        self.key: FrameKey = ("", 0)
        self._behind: deque[Future[tuple[Detections, int]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="avq-boxes")

    @property
    def in_advance(self) -> bool:
        """The clock does not need to see how long a stage takes."""
        return self.plan.kind != "measured"

    @property
    def engine_ns(self) -> int:
        return sum(row.infer_ns for row in self.measured)

    def started(self, frame: Frame) -> Prepared | None:
        """Another frame is being served; older ones of its camera never will be."""
        self.key = frame.camera, frame.seq
        self.measured.append(Measured())
        made = self.made.get(self.key)
        self.made = {k: v for k, v in self.made.items() if k[0] != frame.camera or k[1] > frame.seq}
        return made

    def passes(self, bundle: str, stage: str, measured_ns: int) -> None:
        """A stage is done: the clock moves by the plan."""
        planned = getattr(self.plan.of(self.key, bundle), stage) if self.in_advance else measured_ns
        self.clock.advance_by(int(planned))

    def later(self, decodes: Decodes, raw: RawOutputs, model_input: ModelInput, **frame: Any) -> Detections:
        """Decode on the other thread; the message goes out with an empty place for the boxes."""
        borrowed = {name: array.copy() for name, array in raw.items()}
        future = self._pool.submit(_decoded, decodes, borrowed, model_input, frame)
        self.measured[-1].decoded = future
        self._behind.append(future)
        if len(self._behind) > _BEHIND:
            self._behind.popleft().result()
        return Detections.none(**frame)

    def boxes(self, index: int, seen: Detections) -> Detections:
        """The boxes of the ``index``-th processed frame; its decoding time is known from here on."""
        row = self.measured[index]
        if row.decoded is None:
            return seen
        boxes, row.decode_ns = row.decoded.result()
        return boxes

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _decoded(
    decodes: Decodes, raw: RawOutputs, model_input: ModelInput, frame: Mapping[str, Any]
) -> tuple[Detections, int]:
    before_ns = _MACHINE.now_ns()
    boxes = decodes.decode(raw, model_input, **frame)
    return boxes, _MACHINE.now_ns() - before_ns


@dataclass(frozen=True)
class TimedStages:
    """Preprocessor, session and decoder in one: does the work, then moves the clock by what the plan says."""

    prepares: Prepares
    session: Session
    decodes: Decodes
    bundle: str
    stages: Stages

    @property
    def engine(self) -> str:
        return self.session.engine

    @property
    def precision(self) -> str:
        return self.session.precision

    def prepare(self, picture: Frame | U8) -> ModelInput:
        made = self.stages.started(picture) if isinstance(picture, Frame) else None
        if made is not None and made.spec == getattr(self.prepares, "spec", None):
            ready, spent_ns = made.model_input, made.spent_ns
        else:
            before_ns = _MACHINE.now_ns()
            ready = self.prepares.prepare(picture)
            spent_ns = _MACHINE.now_ns() - before_ns
        self.stages.measured[-1].preprocess_ns = spent_ns
        self.stages.passes(self.bundle, "preprocess_ns", spent_ns)
        return ready

    def infer(self, tensor: U8) -> RawOutputs:
        before_ns = _MACHINE.now_ns()
        raw = self.session.infer(tensor)
        spent_ns = self.stages.measured[-1].infer_ns = _MACHINE.now_ns() - before_ns
        self.stages.passes(self.bundle, "infer_ns", spent_ns)
        return raw

    def decode(
        self, raw: RawOutputs, model_input: ModelInput, *, camera: str, seq: int, t_capture_ns: int
    ) -> Detections:
        frame = {"camera": camera, "seq": seq, "t_capture_ns": t_capture_ns}
        if self.stages.in_advance:
            seen = self.stages.later(self.decodes, raw, model_input, **frame)
            self.stages.passes(self.bundle, "decode_ns", 0)
            return seen
        seen, spent_ns = _decoded(self.decodes, raw, model_input, frame)
        self.stages.measured[-1].decode_ns = spent_ns
        self.stages.passes(self.bundle, "decode_ns", spent_ns)
        return seen

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.session.run(feeds)

    def close(self) -> None:
        self.session.close()


def timed(parts: Parts, stages: Stages) -> Parts:
    """``parts`` whose work takes the plan's time."""
    own = TimedStages(parts.preprocessor, parts.session, parts.decoder, parts.bundle_digest, stages)
    return replace(parts, preprocessor=own, session=own, decoder=own)
