"""Result of a replay: every published frame, every decision, and digests of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from avq.daemon.inbox import FrameCounts
from avq.replay.log import FrameKey
from avq.replay.timing import Timing
from avq.types import Detections, Published, StageTimes


@dataclass(frozen=True, slots=True)
class Answer:
    """One published frame.

    Attributes:
        published: the published message, with lateness and mode.
        virtual: stage times on the replay clock, including the queue.
        measured: stage times on this machine; the queue is 0.
    """

    published: Published
    virtual: StageTimes
    measured: StageTimes

    @property
    def detections(self) -> Detections:
        return self.published.detections

    @property
    def key(self) -> FrameKey:
        return self.detections.camera, self.detections.seq


@dataclass(frozen=True)
class ReplayResult:
    """A complete replay; holds no pixels, and can be pickled.

    Attributes:
        log: path or URI.
        log_digest: SHA-256 of the log.
        bundle_digest: digest of the best mode's bundle.
        config_digest: digest of budget, camera deadlines, modes, policy and frame limit.
        machine: engine, its version and the instruction set: the same machine gives the same bits.
        labels: class names by id.
        answers: published frames, in order of publication.
        events: alerts and mode changes, as sinks receive them.
        account: counts of captured, published and dropped frames.
        modes: modes in order of activation.
        misses: number of late frames.
        timing: kind of the stage times.
        timing_remark: source of the stage times, in words.
        seconds: wall time of the replay.
        engine_seconds: wall time inside the engine.
        benches: bundle digest -> build metrics, of all modes.
        remark: describes the part of the log that could not be read.
        start_unix_ns: Unix time of the first capture; 0 when unknown.
        deadline_ns: allowed age at publication, of cameras without a deadline of their own.
        deadline_remark: the deadlines in force and their source, in words.
    """

    log: str
    log_digest: str
    bundle_digest: str
    config_digest: str
    machine: str
    labels: tuple[str, ...]
    answers: tuple[Answer, ...]
    events: tuple[Mapping[str, Any], ...]
    account: FrameCounts
    modes: tuple[str, ...]
    misses: int
    timing: Timing
    timing_remark: str
    seconds: float
    engine_seconds: float
    benches: Mapping[str, Mapping[str, Any]]
    remark: str = ""
    start_unix_ns: int = 0
    deadline_ns: int = 0
    deadline_remark: str = ""

    @property
    def frames(self) -> int:
        return len(self.answers)

    @property
    def detections(self) -> tuple[Detections, ...]:
        return tuple(answer.detections for answer in self.answers)

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """Decisions of the loop: one row per frame in order, the events, then the frame counts."""
        rows = [
            {
                "camera": a.detections.camera,
                "seq": a.detections.seq,
                "t_capture_ns": a.detections.t_capture_ns,
                "age_ns": a.published.age_ns,
                "late": a.published.late,
                "mode": a.published.mode,
                "dropped_since_last": a.published.dropped_since_last,
            }
            for a in self.answers
        ]
        counts = {"captured": self.account.captured, "dropped": dict(sorted(self.account.dropped.items()))}
        return [*rows, *({"event": dict(event)} for event in self.events), counts]

    @property
    def sha256(self) -> str:
        """SHA-256 of all boxes, scores and classes, bit for bit, frame by frame."""
        return detections_digest(self.detections)

    @property
    def decisions_sha256(self) -> str:
        """SHA-256 of ages, lateness, drops, modes and events."""
        return hashlib.sha256(msgspec.json.encode(self.decisions, order="sorted")).hexdigest()


def detections_digest(run: Iterable[Detections]) -> str:
    """Return the SHA-256 over camera, sequence number and the little-endian bytes of the arrays of each frame."""
    digest = hashlib.sha256()
    for seen in run:
        digest.update(f"{seen.camera}\0{seen.seq}\0{len(seen)}\n".encode())
        digest.update(np.ascontiguousarray(seen.boxes_xyxy_px, "<f4").tobytes())
        digest.update(np.ascontiguousarray(seen.scores, "<f4").tobytes())
        digest.update(np.ascontiguousarray(seen.class_ids, "<i8").tobytes())
    return digest.hexdigest()
