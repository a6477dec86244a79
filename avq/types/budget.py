"""Deadlines, stage times and what is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from avq.types.detection import Detections


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """How late is late.

    Attributes:
        deadline_ns: allowed time from capture to publish.
        window_frames: frames over which the miss ratio is judged.
        max_miss_ratio: tolerated share of late frames in the window, 0..1.
    """

    deadline_ns: int
    window_frames: int = 30
    max_miss_ratio: float = 0.1


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Nanoseconds spent per stage of one frame, all of one clock."""

    queue_ns: int
    preprocess_ns: int
    infer_ns: int
    decode_ns: int

    def items(self) -> list[tuple[str, int]]:
        """(stage, ns) in the order a frame walks through them."""
        return [
            ("queue", self.queue_ns),
            ("preprocess", self.preprocess_ns),
            ("infer", self.infer_ns),
            ("decode", self.decode_ns),
        ]


@dataclass(frozen=True, slots=True)
class Published:
    """One frame's answer as sinks receive it; lateness is data, not a log line."""

    detections: Detections
    age_ns: int
    dropped_since_last: int
    late: bool
    mode: str
    bundle_digest: str
    picture_size_px: tuple[int, int] = (0, 0)  # width, height of the frame the boxes lie in

    def as_message(self, labels: Sequence[str]) -> dict[str, Any]:
        """The line sinks write (the keys are the command contract); pixels to 0.001, scores to 0.00001."""
        seen = self.detections
        boxes = np.round(seen.boxes_xyxy_px.astype(np.float64), 3).tolist()
        scores = np.round(seen.scores.astype(np.float64), 5).tolist()
        names = (labels[i] if i < len(labels) else str(i) for i in seen.class_ids.tolist())
        return {
            "camera": seen.camera,
            "seq": seen.seq,
            "t_capture_ns": seen.t_capture_ns,
            "age_ms": round(self.age_ns / 1e6, 3),
            "late": self.late,
            "mode": self.mode,
            "bundle": self.bundle_digest,
            "detections": [
                {"label": name, "score": score, "box_xyxy_px": box}
                for name, score, box in zip(names, scores, boxes, strict=True)
            ],
        }
