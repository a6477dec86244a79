"""The preprocessing spec: one definition for calibration, evaluation and serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """From a BGR picture to the network's numbers.

    The picture becomes uint8 (1, 3, height_px, width_px) outside the graph; inside it,
    value = (pixel * scale - mean[c]) / std[c], channels in ``channel_order``.

    Attributes:
        width_px, height_px: network input size.
        resize: "letterbox" keeps the aspect and pads; "stretch" does not.
        anchor: where a letterboxed picture lies: "center" or "top-left".
        pad_value: 0..255, in every channel.
        channel_order: "RGB" or "BGR".
        scale: multiplied first, usually 1 or 1/255.
        mean, std: per channel in ``channel_order``, after ``scale``.
    """

    width_px: int
    height_px: int
    resize: Literal["letterbox", "stretch"] = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad_value: int = 114
    channel_order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
