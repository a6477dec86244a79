"""Preprocess a BGR picture to the network's uint8 tensor; map boxes back to picture pixels.

The graph contains cast, scale, mean and std (the build folds them in); this is resize, pad and channel split only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from avq.errors import ConfigError, DataError, RequestError, nearest
from avq.types import F64, U8, Frame, ModelInput, PreprocessSpec
from avq.types.preprocess import PRESETS

__all__ = ["PRESETS", "Preprocessor", "spec_from_json", "spec_named", "spec_text", "spec_to_json"]

_KEYS = tuple(f.name for f in fields(PreprocessSpec))
_CHOICES = {
    "resize": ("letterbox", "stretch", "crop"),
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
        self._cut = (slice(None), slice(None))  # rows and columns of the picture that the network sees
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
        cut = pixels[self._cut]
        cv2.resize(cut, (width, height), dst=self._resized, interpolation=cv2.INTER_LINEAR)
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
        left, top, seen_width, seen_height = crop_window(self.spec, width_px, height_px)
        self._cut = (slice(top, top + seen_height), slice(left, left + seen_width))
        step_x, step_y = seen_width / width, seen_height / height
        self._model_to_image = np.array([[step_x, 0.0, left - x * step_x], [0.0, step_y, top - y * step_y]])
        self._model_to_image.flags.writeable = False
        self._picture_size_px = (width_px, height_px)


def letterbox_window(spec: PreprocessSpec, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return x, y, width, height in network-input pixels of the window of a picture of that size."""
    if spec.resize != "letterbox":
        return 0, 0, spec.width_px, spec.height_px
    ratio = min(spec.width_px / width_px, spec.height_px / height_px)
    width = min(max(round(width_px * ratio), 1), spec.width_px)
    height = min(max(round(height_px * ratio), 1), spec.height_px)
    if spec.anchor == "top-left":
        return 0, 0, width, height
    return (spec.width_px - width) // 2, (spec.height_px - height) // 2, width, height


def crop_window(spec: PreprocessSpec, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """Return x, y, width, height in picture pixels of the part that the network sees: all of it without "crop"."""
    if spec.resize != "crop":
        return 0, 0, width_px, height_px
    ratio = min(width_px / spec.width_px, height_px / spec.height_px)
    width = min(max(round(spec.width_px * ratio), 1), width_px)
    height = min(max(round(spec.height_px * ratio), 1), height_px)
    return (width_px - width) // 2, (height_px - height) // 2, width, height


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


# The text of a spec on the command line: GEOMETRY,ORDER,NUMBERS, such as center-letterbox-114,RGB,0..1.

_GRAMMAR = (
    "write GEOMETRY,ORDER,NUMBERS: stretch, crop, center-letterbox-114 or top-left-letterbox-114 (the padding); "
    "RGB or BGR; 0..1, 0..255, -1..1, imagenet, or scale=1,mean=127.5,std=128 (three values: mean=1/2/3)"
)
_LETTERBOX = re.compile(r"(center|top-left)-letterbox-(\d+)")
_Numbers = tuple[float, tuple[float, float, float], tuple[float, float, float]]
_ZEROS, _ONES, _MIDDLE = (0.0,) * 3, (1.0,) * 3, (127.5,) * 3


def _named_numbers(order: str) -> Mapping[str, _Numbers]:
    """Scale, mean and std of the number ranges with a name; ImageNet's are in the channel order."""
    norm = PRESETS["imagenet" if order == "RGB" else "imagenet-bgr"](1, 1)
    return {
        "0..1": (1.0 / 255.0, _ZEROS, _ONES),
        "0..255": (1.0, _ZEROS, _ONES),
        "-1..1": (1.0, _MIDDLE, _MIDDLE),
        "imagenet": (norm.scale, norm.mean, norm.std),
    }


def spec_text(spec: PreprocessSpec) -> str:
    """Return the spec as ``--preprocess`` takes it, without the size: the inverse of ``spec_named``."""
    geometry = f"{spec.anchor}-letterbox-{spec.pad_value}" if spec.resize == "letterbox" else spec.resize
    return f"{geometry},{spec.channel_order},{_numbers_text(spec)}"


def _numbers_text(spec: PreprocessSpec) -> str:
    numbers = (spec.scale, spec.mean, spec.std)
    for name, named in _named_numbers(spec.channel_order).items():
        if numbers == named:
            return name
    scale = "1/255" if spec.scale == 1.0 / 255.0 else _shortest(spec.scale)
    parts = [f"scale={scale}"] if spec.scale != 1.0 else []
    parts += [f"mean={_triple(spec.mean)}"] if spec.mean != _ZEROS or spec.scale == 1.0 else []
    parts += [f"std={_triple(spec.std)}"] if spec.std != _ONES else []
    return ",".join(parts)


def _triple(values: tuple[float, float, float]) -> str:
    return _shortest(values[0]) if len(set(values)) == 1 else "/".join(map(_shortest, values))


def _shortest(value: float) -> str:
    return repr(value).removesuffix(".0")


def _spec_from_text(text: str, width_px: int, height_px: int) -> PreprocessSpec:
    geometry, _, rest = text.partition(",")
    order, _, numbers = rest.partition(",")
    if order not in _CHOICES["channel_order"]:
        raise _unclear(text, f"channel order '{order}'")
    scale, mean, std = _named_numbers(order).get(numbers) or _written_numbers(text, numbers)
    spec = PreprocessSpec(
        width_px=width_px,
        height_px=height_px,
        channel_order=order,  # type: ignore[arg-type]
        scale=scale,
        mean=mean,
        std=std,
    )
    return replace(spec, **_geometry(text, geometry))


def _geometry(text: str, geometry: str) -> dict[str, Any]:
    if geometry in ("stretch", "crop"):
        return {"resize": geometry}
    match = _LETTERBOX.fullmatch(geometry)
    if match is None or int(match[2]) > 255:
        raise _unclear(text, f"geometry '{geometry}'")
    return {"anchor": match[1], "pad_value": int(match[2])}


def _written_numbers(text: str, numbers: str) -> _Numbers:
    """Scale, mean and std of ``scale=S,mean=M,std=D``, where M and D are one value or three."""
    given: dict[str, list[float]] = {"scale": [1.0], "mean": [0.0] * 3, "std": [1.0] * 3}
    for part in numbers.split(","):
        key, _, value = part.partition("=")
        try:
            if part == "scale=1/255":
                given["scale"] = [1.0 / 255.0]
                continue
            values = [float(one) for one in value.split("/")]
        except ValueError:
            raise _unclear(text, f"numbers '{part}'") from None
        count = len(given.get(key, []))
        if len(values) not in (min(count, 1), count) or not all(map(math.isfinite, values)):
            raise _unclear(text, f"numbers '{part}'")
        given[key] = values if len(values) == count else values * count
    if min(*given["scale"], *given["std"]) <= 0:
        raise _unclear(text, f"'{numbers}': scale and std must be positive")
    return given["scale"][0], tuple(given["mean"]), tuple(given["std"])  # type: ignore[return-value]


def _unclear(text: str, seen: str) -> RequestError:
    return RequestError(f"--preprocess: '{text}' is not a preprocessing", seen=seen, fix=_GRAMMAR)


def spec_named(name: str, width_px: int, height_px: int) -> PreprocessSpec:
    """Return the spec of ``--preprocess PRESET|TEXT|FILE`` for a network input of that size.

    Raises:
        RequestError: the name is no preset, no text of a spec and no readable file.
        ConfigError: the content of the file is invalid.
    """
    if name in PRESETS:
        return PRESETS[name](width_px, height_px)
    path = Path(name)
    if not path.is_file():
        if "," in name:
            return _spec_from_text(name, width_px, height_px)
        raise RequestError(
            f"'{name}' is neither a preprocessing preset nor a file",
            seen=name,
            fix=f"{nearest(name, PRESETS)}; or {_GRAMMAR}",
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{name} cannot be read", seen=str(error), fix="check its permissions") from None
    return spec_from_json(text, where=name, size_px=(width_px, height_px))
