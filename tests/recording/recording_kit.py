"""Frames with pictures and boxes for recorders, without anything that is slow to import."""

from __future__ import annotations

import cv2
import numpy as np

from avq.types import Detections, Frame, Published

LABELS = ("car", "person")


def picture(seq: int, width_px: int = 320, height_px: int = 180) -> np.ndarray:
    rng = np.random.default_rng(seq)
    small = rng.integers(0, 255, (height_px // 20, width_px // 20, 3), np.uint8)
    return cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_CUBIC)


def published(seq: int, boxes: int = 2) -> tuple[Published, Frame]:
    corner = np.arange(boxes, dtype=np.float32)[:, None] * 10
    box = np.concatenate([corner, corner, corner + 20, corner + 30], 1)
    t_ns = 1_000_000_000 + seq * 33_000_000
    seen = Detections(
        box, np.full(boxes, 0.75, np.float32), np.arange(boxes, dtype=np.int64) % 2, "front", seq, t_ns
    )
    message = Published(seen, 12_345_678, 0, False, "normal", "d1")
    return message, Frame("front", seq, t_ns, picture(seq))
