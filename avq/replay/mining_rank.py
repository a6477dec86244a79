"""Score the frames of one log by disagreement and drift, in a worker; rank and choose frames over all logs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from avq.bundle import DRIFT, PROBE, open_bundle
from avq.hookspecs import Engine
from avq.measure.drift import DriftReference
from avq.plugins import PluginHost
from avq.preprocess import Preprocessor
from avq.recording import LogReader
from avq.replay.differences import pair_frames
from avq.replay.log import FrameKey, load_ahead
from avq.replay.log_sources import open_log
from avq.replay.result import ReplayResult
from avq.replay.run import ReplayRequest, replay
from avq.sources.uri import local_path
from avq.types import Detections, SessionOptions

#: "float": difference of the float network and the bundle; "recorded": difference of the recorded boxes and the
#: bundle; "drift": distance of the activations from those of the calibration pictures.
SIGNALS = ("float", "recorded", "drift")


@dataclass(frozen=True)
class Frame:
    """One frame of a log with its signals.

    Attributes:
        log: path or URI.
        key: camera and sequence number.
        t_capture_ns: nanoseconds since the first capture of the log.
        signals: by name; larger is more unusual, 0 is no signal. Unknown ones are missing.
        proposals: (label, score, box x0 y0 x1 y1 in pixels) of the better of the two models.
    """

    log: str
    key: FrameKey
    t_capture_ns: int
    signals: Mapping[str, float]
    proposals: tuple[tuple[str, float, tuple[float, ...]], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Ranked:
    """A ranked frame.

    Attributes:
        frame: the frame.
        score: share of frames whose strongest signal is weaker.
        why: name of the strongest signal.
    """

    frame: Frame
    score: float
    why: str


def rank(frames: Sequence[Frame]) -> list[Ranked]:
    """Rank frames by their strongest signal, each by its rank among all frames: signals have no common unit.

    A frame without any signal above 0 gets score 0; ties keep the order of the frames.
    """
    shares = {name: _shares([frame.signals.get(name, 0.0) for frame in frames]) for name in SIGNALS}
    ranked = []
    for index, frame in enumerate(frames):
        own = {name: shares[name][index] for name in SIGNALS if name in frame.signals}
        best = max(own, key=lambda name: own[name], default="")
        ranked.append((own.get(best, 0.0), sum(own.values()), Ranked(frame, own.get(best, 0.0), best)))
    return [row for _, _, row in sorted(ranked, key=lambda entry: (-entry[0], -entry[1]))]


def _shares(values: Sequence[float]) -> list[float]:
    """Return the share of frames with a smaller value; 0 for 0."""
    order = sorted(values)
    below = {value: index for index, value in reversed(list(enumerate(order)))}
    return [(below[value] + 1) / len(values) if value > 0.0 else 0.0 for value in values]


def choose(ranked: Sequence[Ranked], count: int, gap_ns: int) -> list[Ranked]:
    """Choose the first ``count`` frames at least ``gap_ns`` apart; closer ones only to reach ``count``.

    Frames without a signal are never chosen.
    """
    candidates = [row for row in ranked if row.score > 0.0]
    chosen: list[Ranked] = []
    for row in candidates:
        if len(chosen) < count and all(_far_apart(row.frame, other.frame, gap_ns) for other in chosen):
            chosen.append(row)
    taken = {id(row) for row in chosen}
    fill = [row for row in candidates if id(row) not in taken][: count - len(chosen)]
    keep = taken | {id(row) for row in fill}
    return [row for row in candidates if id(row) in keep]


def _far_apart(a: Frame, b: Frame, gap_ns: int) -> bool:
    other = (a.log, a.key[0]) != (b.log, b.key[0])
    return other or abs(a.t_capture_ns - b.t_capture_ns) >= gap_ns


#: Lowest score of a box that is proposed for labelling.
_PROPOSED = 0.3


@dataclass(frozen=True)
class MineJob:
    """One log to score; plain data for a worker.

    Attributes:
        log: path or URI.
        bundle: the bundle folder.
        other: the bundle to compare with; None uses the float network of ``bundle`` itself.
        frames: stop after so many frames; None replays all.
    """

    log: str
    bundle: Path
    other: Path | None
    frames: int | None


@dataclass(frozen=True)
class ScoredLog:
    """Frames of a log with their signals, and the digests that ``avq replay`` reports."""

    frames: tuple[Frame, ...]
    sha256: str
    log_sha256: str
    seconds: float


def score_log(job: MineJob) -> ScoredLog:
    """Replay both models on a log, and run the drift probe if the bundle has one."""
    host = PluginHost()
    result = _replayed(job, job.bundle, host)
    with tempfile.TemporaryDirectory() as folder:
        other = job.other or _float_bundle(job.bundle, Path(folder))
        reference = _replayed(job, other, host) if other is not None else None
    signals: dict[FrameKey, dict[str, float]] = {answer.key: {} for answer in result.answers}
    for name, seen in (("float", reference and reference.detections), ("recorded", _recorded(job, result))):
        if seen:
            _compare(signals, name, seen, result.detections)
    for key, score in _drift(job, host, signals).items():
        signals[key]["drift"] = score
    better = {(d.camera, d.seq): d for d in (reference or result).detections}
    frames = tuple(
        Frame(
            job.log,
            answer.key,
            answer.detections.t_capture_ns,
            signals[answer.key],
            _proposals(better.get(answer.key, answer.detections), result.labels),
        )
        for answer in result.answers
    )
    return ScoredLog(frames, result.sha256, result.log_digest, result.seconds)


def _replayed(job: MineJob, bundle: Path, host: PluginHost) -> ReplayResult:
    return replay(ReplayRequest(job.log, bundle, policy="every", frames=job.frames), host=host)


def _float_bundle(bundle: Path, folder: Path) -> Path | None:
    """Write a bundle with the float network of ``bundle``; None for a bundle that is float already."""
    if not open_bundle(bundle, allow_unaccepted=True).manifest.plan_digest:
        return None
    from avq.builder.plan_mixture import write_float_bundle

    return write_float_bundle(bundle, folder / "float.avq")


def _compare(
    signals: dict[FrameKey, dict[str, float]], name: str, a: Sequence[Detections], b: Sequence[Detections]
) -> None:
    for pair in pair_frames(a, b):
        if pair.a is not None and pair.b is not None and pair.key in signals:
            signals[pair.key][name] = pair.badness


class _Row(msgspec.Struct):
    label: str
    score: float
    box_xyxy_px: tuple[float, float, float, float]


class _Message(msgspec.Struct):
    camera: str
    seq: int
    bundle: str
    detections: list[_Row]


def _recorded(job: MineJob, result: ReplayResult) -> list[Detections]:
    """Return the recorded boxes of another bundle from a flight record, of classes that this bundle has."""
    path = local_path(job.log)
    if path.suffix.lower() != ".mcap" or not path.is_file():
        return []
    classes = {name: index for index, name in enumerate(result.labels)}
    by_frame: dict[FrameKey, Detections] = {}
    with LogReader(path) as log:
        for record in log:
            if record.schema_name != "avq.Detections" or record.message_encoding != "json":
                continue
            try:
                message = msgspec.json.decode(record.data, type=_Message)
            except msgspec.MsgspecError:
                continue
            if message.bundle != result.bundle_digest:
                rows = [row for row in message.detections if row.label in classes]
                by_frame[message.camera, message.seq] = Detections(
                    np.array([row.box_xyxy_px for row in rows], np.float32).reshape(-1, 4),
                    np.array([row.score for row in rows], np.float32),
                    np.array([classes[row.label] for row in rows], np.int64),
                    message.camera,
                    message.seq,
                    0,
                )
    return list(by_frame.values())


def _drift(job: MineJob, host: PluginHost, wanted: Mapping[FrameKey, object]) -> dict[FrameKey, float]:
    """Return the drift score of each frame; {} without probe and reference."""
    bundle = open_bundle(job.bundle, allow_unaccepted=True)
    engine: Engine | None = host.running_engines().get("onnxruntime")
    if engine is None or not (bundle.has(PROBE) and bundle.has(DRIFT)) or bundle.manifest.preprocess is None:
        return {}
    reference = DriftReference.from_json(bundle.read(DRIFT))
    preprocessor = Preprocessor(bundle.manifest.preprocess)
    log = open_log(job.log, host.sources())
    scores: dict[FrameKey, float] = {}
    session = engine.open(bundle.read(PROBE), SessionOptions())
    try:
        with closing(load_ahead(log.frames(), workers=log.workers)) as frames:
            for frame, pixels in frames:
                if pixels is not None and frame.key in wanted:
                    ratios = session.infer(preprocessor.prepare(pixels).tensor)
                    scores[frame.key] = reference.score({name: float(v) for name, v in ratios.items()})
                if len(scores) == len(wanted):
                    break
    finally:
        session.close()
    return scores


def _proposals(seen: Detections, labels: Sequence[str]) -> tuple[tuple[str, float, tuple[float, ...]], ...]:
    firm = seen.above(_PROPOSED)
    rows = zip(firm.class_ids.tolist(), firm.scores.tolist(), firm.boxes_xyxy_px.tolist(), strict=True)
    return tuple(
        (labels[k] if k < len(labels) else str(k), round(score, 4), tuple(round(v, 2) for v in box))
        for k, score, box in rows
    )
