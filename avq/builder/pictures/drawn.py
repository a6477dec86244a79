"""Drawn pictures for builds without any: enough to time an engine and to prove an import, not to judge a model."""

from __future__ import annotations

import cv2
import numpy as np

from avq.types import ModelInput, PreprocessSpec

_SEED = 20
_COARSE_PX = 9


def drawn_inputs(spec: PreprocessSpec, count: int) -> tuple[ModelInput, ...]:
    """Network inputs, (1, 3, h, w) uint8: noise and smooth colour fields in turns; always the same ones."""
    rng = np.random.default_rng(_SEED)
    size_px = (spec.width_px, spec.height_px)
    return tuple(
        ModelInput(_noise(rng, size_px) if index % 2 else _field(rng, size_px), np.eye(2, 3), size_px)
        for index in range(count)
    )


def _noise(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    return rng.integers(0, 256, (1, 3, size_px[1], size_px[0]), np.uint8)


def _field(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    coarse = rng.integers(0, 256, (_COARSE_PX, _COARSE_PX, 3), np.uint8)
    smooth = cv2.resize(coarse, size_px, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(smooth.transpose(2, 0, 1)[None])
