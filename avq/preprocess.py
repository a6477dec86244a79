"""Preprocess a BGR picture to the network's uint8 tensor; map boxes back to picture pixels.

The graph contains cast, scale, mean and std (the build folds them in); this is resize, pad and channel split only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from avq.errors import ConfigError, DataError, RequestError, nearest
from avq.types import F64, U8, Frame, ModelInput, PreprocessSpec
from avq.types.preprocess import PRESETS

__all__ = ["PRESETS", "Preprocessor", "spec_from_json", "spec_named", "spec_to_json"]

_KEYS = tuple(f.name for f in fields(PreprocessSpec))
_CHOICES = {
    "resize": ("letterbox", "stretch"),
    "anchor": ("center", "top-left"),
    "channel_order": ("RGB", "BGR"),
}
_LARGEST_SIDE_PX = 16384


class Preprocessor:
    """Convert pictures of any size to (1, 3, height_px, width_px) uint8. Not thread-safe: use one per thread.

    Args:
        spec: size, letterbox and channel order; scale, mean and std are applied in the graph.
    """

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec
        self._tensor: U8 = np.empty((1, 3, spec.height_px, spec.width_px), np.uint8)
        self._picture_size_px = (0, 0)
        self._resized: U8 = np.empty((0, 0, 3), np.uint8)
        self._bgr_windows: list[U8] = []  # where the picture lies in each plane of the tensor
        self._model_to_image: F64 = np.zeros((2, 3))

    def prepare(self, picture: Frame | U8, *, copy: bool = False) -> ModelInput:
        """Resize (bilinear), pad and split one picture.

        Args:
            picture: a Frame or its pixels, (H, W, 3) uint8 BGR.
            copy: False returns a tensor that is valid until the next ``prepare``; True returns a copy.

        Returns:
            The tensor, (1, 3, height_px, width_px) uint8, and the (2, 3) float64 affine map from network-input
            pixels to picture pixels.

        Raises:
            DataError: the array is not a BGR picture.
        """
        pixels = picture.pixels if isinstance(picture, Frame) else _checked(picture)
        size_px = (pixels.shape[1], pixels.shape[0])
        if size_px != self._picture_size_px:
            self._lay_out(*size_px)
        height, width = self._resized.shape[:2]
        cv2.resize(pixels, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR)
        cv2.split(self._resized, self._bgr_windows)
        tensor = self._tensor.copy() if copy else self._tensor
        return ModelInput(tensor, self._model_to_image, size_px)

    def _lay_out(self, width_px: int, height_px: int) -> None:
        """Compute the window of pictures of this size in the tensor, and fill the padding once."""
        if width_px == 0 or height_px == 0:
            raise DataError(
                "the picture is empty",
                seen=f"{width_px}x{height_px} px",
                fix="check the source of the picture",
            )
        x, y, width, height = letterbox_window(self.spec, width_px, height_px)
        self._tensor[...] = self.spec.pad_value
        self._resized = np.empty((height, width, 3), np.uint8)
        windows = list(self._tensor[0, :, y : y + height, x : x + width])
        self._bgr_windows = windows if self.spec.channel_order == "BGR" else windows[::-1]
        step_x, step_y = width_px / width, height_px / height
        self._model_to_image = np.array([[step_x, 0.0, -x * step_x], [0.0, step_y, -y * step_y]])
        self._model_to_image.flags.writeable = False
        self._picture_size_px = (width_px, height_px)


def letterbox_window(spec: PreprocessSpec, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return x, y, width, height in network-input pixels of the window of a picture of that size."""
    if spec.resize == "stretch":
        return 0, 0, spec.width_px, spec.height_px
    ratio = min(spec.width_px / width_px, spec.height_px / height_px)
    width = min(max(round(width_px * ratio), 1), spec.width_px)
    height = min(max(round(height_px * ratio), 1), spec.height_px)
    if spec.anchor == "top-left":
        return 0, 0, width, height
    return (spec.width_px - width) // 2, (spec.height_px - height) // 2, width, height


def _checked(pixels: U8) -> U8:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            "the array is not a BGR picture",
            seen=f"shape {pixels.shape}, dtype {pixels.dtype}",
            fix="use (H, W, 3) uint8 BGR pixels, as cv2.imread(path, cv2.IMREAD_COLOR) returns",
        )
    return pixels


def spec_to_json(spec: PreprocessSpec) -> dict[str, Any]:
    """Return the spec as JSON values, the inverse of ``spec_from_json``."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(spec).items()}


def spec_from_json(
    value: str | bytes | Mapping[str, Any],
    *,
    where: str = "preprocessing spec",
    size_px: tuple[int, int] | None = None,
) -> PreprocessSpec:
    """Read a spec from JSON text or values.

    Args:
        value: JSON object with the fields of PreprocessSpec; width_px and height_px may be left out
            where ``size_px`` is given.
        where: file or metadata key, for error messages.
        size_px: (width, height) of the network input, used for a missing size.

    Raises:
        ConfigError: the value is not JSON, or has an unknown key or a value out of range.
    """
    table = dict(_parsed(value, where) if isinstance(value, str | bytes) else value)
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'", seen=key, fix=nearest(key, _KEYS))
    if size_px is not None:
        table = {"width_px": size_px[0], "height_px": size_px[1], **table}
    for key in ("width_px", "height_px"):
        if key not in table:
            raise ConfigError(f"{where}: '{key}' is missing", fix=f'add "{key}": the input size in pixels')
    return PreprocessSpec(**{key: _field(key, item, where) for key, item in table.items()})


def _parsed(text: str | bytes, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON", seen=str(error), fix=_EXAMPLE) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a JSON object", seen=type(value).__name__, fix=_EXAMPLE)
    return value


_EXAMPLE = 'write {"width_px": 640, "height_px": 640, "resize": "letterbox", "channel_order": "RGB", ...}'


def _field(key: str, value: Any, where: str) -> Any:
    check = _CHECKS[key]
    checked = check(value)
    if checked is None:
        raise ConfigError(f"{where}: '{key}' has a wrong value", seen=repr(value), fix=_EXPECTED[key])
    return checked


def _number(value: Any) -> float | None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if valid else None


def _whole(low: int, high: int) -> Callable[[Any], int | None]:
    def check(value: Any) -> int | None:
        number = _number(value)
        valid = number is not None and number == int(number) and low <= number <= high
        return int(value) if valid else None

    return check


def _choice(key: str) -> Callable[[Any], str | None]:
    return lambda value: value if value in _CHOICES[key] else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _three(element: Callable[[Any], float | None]) -> Callable[[Any], tuple[float, ...] | None]:
    def check(value: Any) -> tuple[float, ...] | None:
        if not isinstance(value, list | tuple) or len(value) != 3:
            return None
        numbers = tuple(number for number in map(element, value) if number is not None)
        return numbers if len(numbers) == 3 else None

    return check


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "width_px": _whole(1, _LARGEST_SIDE_PX),
    "height_px": _whole(1, _LARGEST_SIDE_PX),
    "resize": _choice("resize"),
    "anchor": _choice("anchor"),
    "pad_value": _whole(0, 255),
    "channel_order": _choice("channel_order"),
    "scale": _positive,
    "mean": _three(_number),
    "std": _three(_positive),
}
_EXPECTED: Mapping[str, str] = {
    "width_px": f"a whole number of pixels, 1..{_LARGEST_SIDE_PX}",
    "height_px": f"a whole number of pixels, 1..{_LARGEST_SIDE_PX}",
    "pad_value": "a whole number, 0..255",
    "scale": "a positive number, usually 1 or 0.00392156862745098 (1/255)",
    "mean": "three numbers, in the order of channel_order, after scale",
    "std": "three positive numbers, in the order of channel_order, after scale",
    **{key: f"one of {', '.join(choices)}" for key, choices in _CHOICES.items()},
}


def spec_named(name: str, width_px: int, height_px: int) -> PreprocessSpec:
    """Return the spec of ``--preprocess NAME|FILE`` for a network input of that size.

    Raises:
        RequestError: the name is neither a preset nor a readable file.
        ConfigError: the content of the file is invalid.
    """
    if name in PRESETS:
        return PRESETS[name](width_px, height_px)
    path = Path(name)
    if not path.is_file():
        raise RequestError(
            f"'{name}' is neither a preprocessing preset nor a file", seen=name, fix=nearest(name, PRESETS)
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{name} cannot be read", seen=str(error), fix="check its permissions") from None
    return spec_from_json(text, where=name, size_px=(width_px, height_px))
