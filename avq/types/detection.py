"""What a detector saw in one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avq.errors import DataError
from avq.types.frame import F32, I64


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one frame, best score first.

    Attributes:
        boxes_xyxy_px: (N, 4) float32, picture pixels, x0 y0 x1 y1.
        scores: (N,) float32 in 0..1.
        class_ids: (N,) int64, index into the model's class names.
        camera, seq, t_capture_ns: of the frame they belong to.
    """

    boxes_xyxy_px: F32
    scores: F32
    class_ids: I64
    camera: str = ""
    seq: int = 0
    t_capture_ns: int = 0

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes_xyxy_px.shape, self.scores.shape, self.class_ids.shape)
        if shapes != ((count, 4), (count,), (count,)):
            raise DataError(
                "detections do not line up",
                seen=f"boxes {shapes[0]}, scores {shapes[1]}, class_ids {shapes[2]}",
                fix="a decoder must return (N, 4), (N,) and (N,)",
            )

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def none(cls, camera: str = "", seq: int = 0, t_capture_ns: int = 0) -> Detections:
        """An empty result for a frame."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            camera,
            seq,
            t_capture_ns,
        )

    def above(self, score: float) -> Detections:
        """Only the boxes whose score is at least ``score``."""
        keep = self.scores >= score
        return Detections(
            self.boxes_xyxy_px[keep],
            self.scores[keep],
            self.class_ids[keep],
            self.camera,
            self.seq,
            self.t_capture_ns,
        )
