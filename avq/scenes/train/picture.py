"""The detector's input picture and the ranges of scene seeds; free of torch, so that tests can use it."""

from __future__ import annotations

import cv2
import numpy as np

from avq.scenes.labels import Image

INPUT_HEIGHT_PX = 192
INPUT_WIDTH_PX = 320
PAD_VALUE = 114

# Disjoint ranges of seeds; the calibration set has its own (avq.scenes.make_calibration_set).
TRAINING_SEED = 1_000_000
HELD_OUT_SEED = 10_000
HELD_OUT_SCENES = 500

# Boxes less tall than this, in network input pixels, are ignored by the evaluation.
IGNORE_BELOW_PX = 16.0


def letterbox(pixels: Image) -> tuple[Image, float]:
    """Aspect-keeping resize to fit the network input, pasted top-left; returns the scale too."""
    height, width = pixels.shape[:2]
    scale = min(INPUT_WIDTH_PX / width, INPUT_HEIGHT_PX / height)
    size = (round(width * scale), round(height * scale))
    out = np.full((INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 3), PAD_VALUE, np.uint8)
    out[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
    return out, scale
