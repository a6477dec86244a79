"""How raw outputs become boxes: a head family and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A recognised (or named) head; stored in the bundle, so serving needs no graph.

    Attributes:
        family: registered decoder name, or "none".
        params: JSON values the family needs: output names, strides, anchors, bins ...
        num_classes: number of classes the head scores; 0 for "none".
        score_threshold: boxes below are dropped when serving.
        iou_threshold: of class-wise NMS; unused by heads with NMS in the graph.
        max_detections: at most so many boxes per frame.
    """

    family: str
    params: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 0
    score_threshold: float = 0.3
    iou_threshold: float = 0.65
    max_detections: int = 300
