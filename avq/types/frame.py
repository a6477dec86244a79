"""Pictures on their way to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avq.errors import DataError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]

#: Output name -> array. Engine-owned: valid until the next ``infer`` of the same session.
RawOutputs = Mapping[str, AnyArray]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of one camera.

    Attributes:
        camera: the camera's id in the config.
        seq: the camera's own count, from 0, one per captured frame, dropped ones included.
        t_capture_ns: capture time, host monotonic clock, nanoseconds.
        pixels: (H, W, 3) uint8, BGR.
    """

    camera: str
    seq: int
    t_capture_ns: int
    pixels: U8

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise DataError(
                f"frame {self.seq} of camera '{self.camera}' is not a BGR picture",
                seen=f"shape {self.pixels.shape}, dtype {self.pixels.dtype}",
                fix="a source must yield (H, W, 3) uint8 BGR arrays",
            )


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What the engine sees, and the way back to the picture.

    Attributes:
        tensor: (1, 3, h, w) uint8, channel order as the preprocessing spec says.
        model_to_image: (2, 3) float64 affine map from network-input pixels to picture pixels.
        image_size_px: (width, height) of the picture it came from.
    """

    tensor: U8
    model_to_image: F64
    image_size_px: tuple[int, int]
