"""Virtual time of a replay: a plan of stage times per frame, and bundles whose stages advance the replay clock by it.

The plan depends on the log and the bundles only, so the same replay takes the same decisions on any machine.
"""

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
from avq.replay.log import FrameKey, RecordedTimes
from avq.types import U8, Detections, Frame, ModelInput, PreprocessSpec, RawOutputs, StageTimes

Timing = Literal["recorded", "scaled", "measured"]
#: ``metrics`` of a bundle's manifest: figures that its build measured.
BuildMetrics = Mapping[str, Any]


@dataclass(frozen=True)
class TimingPlan:
    """Stage times by frame and bundle.

    Attributes:
        kind: "recorded", "scaled" or "measured".
        recorded: stage times in the log, by frame.
        typical: medians of the log, for frames without times; the queue time is a result of the replay.
        infer_ns: typical inference time per bundle digest.
        remark: describes the source of the times.
        exact: a frame that its recorded bundle serves is published at its recorded age.
    """

    kind: Timing
    recorded: Mapping[FrameKey, RecordedTimes]
    typical: StageTimes
    infer_ns: Mapping[str, int]
    remark: str
    exact: bool = False

    def age_ns(self, key: FrameKey, bundle: str) -> int:
        """Return the recorded age of a frame at publication; 0 unless times are exact and ``bundle`` served it."""
        row = self.recorded.get(key)
        return row.age_ns if self.exact and row is not None and row.bundle == bundle else 0

    def stage_times(self, key: FrameKey, bundle: str) -> StageTimes:
        """Return the stage times of one frame served with ``bundle`` (a digest)."""
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

    def ratio(self, bundle: str, reference: str) -> float:
        """Return inference time of ``bundle`` / inference time of ``reference``; 1 when either is unknown."""
        time_ns, reference_ns = self.infer_ns.get(bundle, 0), self.infer_ns.get(reference, 0)
        return time_ns / reference_ns if time_ns and reference_ns else 1.0

    def cost_ns(self, bundle: str) -> float:
        """Return the typical service time of one frame, as the ladder needs it for a mode."""
        infer_ns = self.infer_ns.get(bundle, self.typical.infer_ns)
        return float(self.typical.preprocess_ns + infer_ns + self.typical.decode_ns)


def plan_timing(
    timing: Timing | None,
    recorded: Mapping[FrameKey, RecordedTimes],
    bundles: Mapping[str, BuildMetrics],
    known: Mapping[str, BuildMetrics],
) -> TimingPlan:
    """Return the stage times of these bundles on that log.

    Args:
        timing: source of the times; None uses "recorded" if the log has times of the first bundle, else "scaled".
        recorded: stage times in the log by frame; empty if it has none.
        bundles: digest -> build metrics of the bundles replayed, best mode first.
        known: the same of bundles that are not replayed (such as that of a reference), for ratios.

    Raises:
        RequestError: ``timing`` is "recorded" and the log has no times.
    """
    first = next(iter(bundles))
    recorded_infer_ns = _median_infer_ns(recorded.values())
    if timing == "recorded" and not recorded:
        raise RequestError(
            "the log holds no stage times",
            seen="no /avq/timing messages",
            fix="use --timing scaled; avq run --log records stage times",
        )
    kind: Timing = timing or ("recorded" if first in recorded_infer_ns else "scaled")
    typical = _typical(recorded.values())
    infer_ns = {digest: round(times) for digest, times in recorded_infer_ns.items()}
    for digest, metrics in bundles.items():
        if digest not in infer_ns:
            infer_ns[digest] = _infer_ns(metrics, infer_ns, known)
    if kind == "recorded" and first not in recorded_infer_ns and recorded_infer_ns:
        infer_ns[first] = round(next(iter(recorded_infer_ns.values())))
    return TimingPlan(kind, recorded, typical, infer_ns, _remark(kind, first, infer_ns, recorded_infer_ns))


def _median_infer_ns(rows: Iterable[RecordedTimes]) -> dict[str, float]:
    """Return the median inference time per bundle in the log, the bundle with most frames first."""
    times: dict[str, list[int]] = {}
    for row in rows:
        times.setdefault(row.bundle, []).append(row.times.infer_ns)
    by_frames = sorted(times.items(), key=lambda item: (-len(item[1]), item[0]))
    return {digest: float(median(values)) for digest, values in by_frames}


def _typical(rows: Iterable[RecordedTimes]) -> StageTimes:
    listed = [row.times for row in rows]
    if not listed:
        return StageTimes(0, 0, 0, 0)
    stages = {name: round(median(dict(t.items())[name] for t in listed)) for name, _ in listed[0].items()}
    return StageTimes(0, stages["preprocess"], stages["infer"], stages["decode"])


def _infer_ns(
    metrics: BuildMetrics, recorded_infer_ns: Mapping[str, int], known: Mapping[str, BuildMetrics]
) -> int:
    """Scale the recorded time of a bundle whose build metrics are known; else use the build's own time."""
    for digest, time_ns in recorded_infer_ns.items():
        ratio = build_time_ratio(metrics, known[digest]) if digest in known else 0.0
        if ratio:
            return round(time_ns * ratio)
    return round(p50_ms(metrics) * 1e6)


def build_time_ratio(metrics: BuildMetrics, reference: BuildMetrics) -> float:
    """Return time of a bundle / time of the reference, from their builds; 0 when either was not timed.

    Ratios to the same float engine are preferred to absolute times.
    """
    to_float, reference_to_float = _ratio_to_float(metrics), _ratio_to_float(reference)
    if to_float and reference_to_float and metrics["float"].get("engine") == reference["float"].get("engine"):
        return to_float / reference_to_float
    time_ms, reference_ms = p50_ms(metrics), p50_ms(reference)
    return time_ms / reference_ms if time_ms and reference_ms else 0.0


def p50_ms(metrics: BuildMetrics) -> float:
    """Return the median inference time that the build measured; 0 when it was not timed."""
    chosen = metrics.get("chosen")
    value = chosen.get("p50_ms") if isinstance(chosen, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _ratio_to_float(metrics: BuildMetrics) -> float:
    """Return the paired ratio to the fastest float engine; 0 when it was not measured."""
    chosen = metrics.get("chosen")
    ratio = chosen.get("ratio") if isinstance(chosen, Mapping) else None
    known = isinstance(ratio, list | tuple) and bool(ratio) and isinstance(metrics.get("float"), Mapping)
    return float(ratio[0]) if ratio and known else 0.0


def _remark(
    kind: Timing, first: str, infer_ns: Mapping[str, int], recorded_infer_ns: Mapping[str, float]
) -> str:
    if kind == "measured":
        return "stage times measured on this machine: decisions are not repeatable"
    if kind == "recorded":
        return "stage times as recorded in the vehicle"
    if not infer_ns.get(first):
        return "the speed of the bundle is unknown: recorded stage times are used unscaled"
    if recorded_infer_ns:
        ratio = infer_ns[first] / max(1.0, next(iter(recorded_infer_ns.values())))
        return f"recorded stage times, inference scaled by {ratio:.3f} for this bundle"
    return f"no recorded times: {infer_ns[first] / 1e6:.2f} ms per inference, as measured by the build"


#: Raw outputs that may wait for the decoding thread.
_MAX_PENDING = 16
_MACHINE = SystemClock()


@dataclass(frozen=True, slots=True)
class PreparedInput:
    """A network input prepared in advance, for bundles with the same preprocessing."""

    spec: PreprocessSpec
    model_input: ModelInput
    spent_ns: int


class InputPreparer:
    """Prepare network inputs of pictures; may be called by several threads at once."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self._spec = spec
        self._thread = threading.local()

    def __call__(self, pixels: U8) -> PreparedInput:
        if not hasattr(self._thread, "preprocessor"):
            self._thread.preprocessor = Preprocessor(self._spec)
        before_ns = _MACHINE.now_ns()
        model_input = self._thread.preprocessor.prepare(pixels, copy=True)
        return PreparedInput(self._spec, model_input, _MACHINE.now_ns() - before_ns)


@dataclass
class MeasuredFrame:
    """Real stage times of one frame, and its boxes once they are decoded."""

    preprocess_ns: int = 0
    infer_ns: int = 0
    decoded: Future[tuple[Detections, int]] | None = None
    decode_ns: int = 0

    def times(self) -> StageTimes:
        return StageTimes(0, self.preprocess_ns, self.infer_ns, self.decode_ns)


class VirtualStages:
    """State shared by the stages of all modes: clock, timing plan, and the real times of every frame.

    Attributes:
        prepared: inputs prepared in advance, by frame; added when a frame is offered.
        measured: real stage times of every processed frame, in order.
    """

    def __init__(self, plan: TimingPlan, clock: ReplayClock) -> None:
        self.plan, self.clock = plan, clock
        self.prepared: dict[FrameKey, PreparedInput] = {}
        self.measured: list[MeasuredFrame] = []
        self.key: FrameKey = ("", 0)
        self.t_capture_ns = 0
        self._pending: deque[Future[tuple[Detections, int]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="avq-boxes")

    @property
    def precomputed(self) -> bool:
        """Whether stage times come from the plan, so that work may be done ahead or later."""
        return self.plan.kind != "measured"

    @property
    def engine_ns(self) -> int:
        return sum(row.infer_ns for row in self.measured)

    def start_frame(self, frame: Frame) -> PreparedInput | None:
        """Begin another frame and return its prepared input; inputs of older frames of its camera are dropped."""
        self.key, self.t_capture_ns = (frame.camera, frame.seq), frame.t_capture_ns
        self.measured.append(MeasuredFrame())
        prepared = self.prepared.get(self.key)
        self.prepared = {k: v for k, v in self.prepared.items() if k[0] != frame.camera or k[1] > frame.seq}
        return prepared

    def end_stage(self, bundle: str, stage: str, measured_ns: int) -> None:
        """Advance the clock by the planned time of a stage, or by the measured one if there is no plan."""
        planned = getattr(self.plan.stage_times(self.key, bundle), stage) if self.precomputed else measured_ns
        self.clock.advance_by(int(planned))
        if stage == "decode_ns":
            self.clock.advance_to(self.t_capture_ns + self.plan.age_ns(self.key, bundle))

    def decode_later(
        self, decodes: Decodes, raw: RawOutputs, model_input: ModelInput, **frame: Any
    ) -> Detections:
        """Decode on another thread; returns empty detections, which ``boxes`` replaces at the end."""
        copies = {name: array.copy() for name, array in raw.items()}
        future = self._pool.submit(_decoded, decodes, copies, model_input, frame)
        self.measured[-1].decoded = future
        self._pending.append(future)
        if len(self._pending) > _MAX_PENDING:
            self._pending.popleft().result()
        return Detections.none(**frame)

    def boxes(self, index: int, detections: Detections) -> Detections:
        """Return the boxes of the ``index``-th processed frame, and note its decoding time."""
        row = self.measured[index]
        if row.decoded is None:
            return detections
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
class VirtualTimeStages:
    """Preprocessor, session and decoder in one: does the work, then advances the replay clock by the planned time."""

    prepares: Prepares
    session: Session
    decodes: Decodes
    bundle: str
    stages: VirtualStages

    @property
    def engine(self) -> str:
        return self.session.engine

    @property
    def precision(self) -> str:
        return self.session.precision

    def prepare(self, picture: Frame | U8) -> ModelInput:
        prepared = self.stages.start_frame(picture) if isinstance(picture, Frame) else None
        spec = self.prepares.spec if isinstance(self.prepares, Preprocessor) else None
        if prepared is not None and prepared.spec == spec:
            model_input, spent_ns = prepared.model_input, prepared.spent_ns
        else:
            before_ns = _MACHINE.now_ns()
            model_input = self.prepares.prepare(picture)
            spent_ns = _MACHINE.now_ns() - before_ns
        self.stages.measured[-1].preprocess_ns = spent_ns
        self.stages.end_stage(self.bundle, "preprocess_ns", spent_ns)
        return model_input

    def infer(self, tensor: U8) -> RawOutputs:
        before_ns = _MACHINE.now_ns()
        raw = self.session.infer(tensor)
        spent_ns = self.stages.measured[-1].infer_ns = _MACHINE.now_ns() - before_ns
        self.stages.end_stage(self.bundle, "infer_ns", spent_ns)
        return raw

    def decode(
        self, raw: RawOutputs, model_input: ModelInput, *, camera: str, seq: int, t_capture_ns: int
    ) -> Detections:
        frame = {"camera": camera, "seq": seq, "t_capture_ns": t_capture_ns}
        if self.stages.precomputed:
            detections = self.stages.decode_later(self.decodes, raw, model_input, **frame)
            self.stages.end_stage(self.bundle, "decode_ns", 0)
            return detections
        detections, spent_ns = _decoded(self.decodes, raw, model_input, frame)
        self.stages.measured[-1].decode_ns = spent_ns
        self.stages.end_stage(self.bundle, "decode_ns", spent_ns)
        return detections

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.session.run(feeds)

    def close(self) -> None:
        self.session.close()


def with_virtual_time(parts: Parts, stages: VirtualStages) -> Parts:
    """Return ``parts`` whose stages take the planned time on the replay clock."""
    assert parts.decoder is not None
    virtual = VirtualTimeStages(parts.preprocessor, parts.session, parts.decoder, parts.bundle_digest, stages)
    return replace(parts, preprocessor=virtual, session=virtual, decoder=virtual)
