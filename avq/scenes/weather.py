"""Apply weather and camera effects: rain, glare, motion blur, lens and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from avq.scenes.labels import Bgr, Image

_NOISE_MARGIN_PX = 64


@lru_cache(maxsize=8)
def _noise_bank(width_px: int, height_px: int, strength: int) -> Image:
    """Sensor noise around 128, a little larger than the picture so that a shift gives a new pattern."""
    rng = np.random.default_rng(77)
    shape = (height_px + _NOISE_MARGIN_PX, width_px + _NOISE_MARGIN_PX, 3)
    grey = rng.normal(0, 0.8, shape[:2])[..., None]
    noise = 128 + strength * (grey + rng.normal(0, 0.6, shape))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def add_noise(pixels: Image, strength: int, rng: np.random.Generator) -> Image:
    height, width = pixels.shape[:2]
    y, x = rng.integers(0, _NOISE_MARGIN_PX, 2)
    noise = _noise_bank(width, height, strength)[y : y + height, x : x + width]
    return np.asarray(cv2.addWeighted(pixels, 1.0, noise, 1.0, -128.0), np.uint8)


@lru_cache(maxsize=4)
def _vignette(width_px: int, height_px: int) -> Image:
    y = np.linspace(-1, 1, height_px)[:, None]
    x = np.linspace(-1, 1, width_px)[None, :]
    value = 255 * (1 - 0.16 * np.clip(x * x + y * y - 0.35, 0, None))
    return np.repeat(value.astype(np.uint8)[..., None], 3, 2)


def add_vignette(pixels: Image) -> None:
    cv2.multiply(pixels, _vignette(pixels.shape[1], pixels.shape[0]), dst=pixels, scale=1 / 255)


def add_rain(pixels: Image, heavy: float, rng: np.random.Generator) -> None:
    """Slanted streaks, blended by adding: brighter over dark ground, faint in the sky."""
    height, width = pixels.shape[:2]
    count = int(heavy * width * height / 1000)
    layer = np.zeros((height, width), np.uint8)
    x = rng.integers(-20, width, count)
    y = rng.integers(-20, height, count)
    length = rng.integers(height // 45, height // 12, count)
    streaks = np.stack([np.stack([x, y], 1), np.stack([x + length // 5, y + length], 1)], 1).astype(np.int32)
    cv2.polylines(layer, list(streaks), False, 40, 1, cv2.LINE_AA)
    cv2.add(pixels, cv2.cvtColor(layer, cv2.COLOR_GRAY2BGR), dst=pixels)


def add_wet_road(pixels: Image, horizon_px: int) -> None:
    """A dim upside-down picture of what is above: the reflection on wet asphalt."""
    height = pixels.shape[0]
    rows = min(height - horizon_px, horizon_px)
    if rows < 8:
        return
    start = horizon_px + rows // 5
    rows = height - start if start + rows > height else rows
    mirror = cv2.flip(pixels[max(start - rows, 0) : start], 0)
    small = cv2.resize(
        mirror, (mirror.shape[1] // 8, mirror.shape[0] // 12 + 1), interpolation=cv2.INTER_AREA
    )
    blurred = cv2.resize(small, (mirror.shape[1], mirror.shape[0]), interpolation=cv2.INTER_LINEAR)
    region = pixels[start : start + mirror.shape[0]]
    cv2.addWeighted(region, 0.84, blurred[: region.shape[0]], 0.20, 0, dst=region)


@lru_cache(maxsize=4)
def _sun_disc(size_px: int) -> Image:
    axis = np.linspace(-1, 1, size_px)
    distance = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    core = np.exp(-((distance / 0.06) ** 2)) * 255
    veil = np.clip(1 - distance, 0, 1) ** 2.0 * 150
    value = np.clip(core + veil, 0, 255)[..., None] * np.array([0.80, 0.94, 1.0])
    return np.asarray(value, np.uint8)


def add_glare(pixels: Image, x_px: float, y_px: float, strength: float) -> None:
    """A low sun: a bright disc, a wide veil, and ghosts along the line through the middle."""
    height, width = pixels.shape[:2]
    sprite = _sun_disc(2 * (width // 2) + 1)
    size = sprite.shape[0]
    x0, y0 = round(x_px) - size // 2, round(y_px) - size // 2
    ax, ay, bx, by = max(x0, 0), max(y0, 0), min(x0 + size, width), min(y0 + size, height)
    if ax < bx and ay < by:
        region = pixels[ay:by, ax:bx]
        cv2.addWeighted(region, 1.0, sprite[ay - y0 : by - y0, ax - x0 : bx - x0], strength, 0, dst=region)
    for where, radius, level in ((0.6, 0.030, 26), (1.35, 0.055, 16), (1.8, 0.022, 30)):
        u = x_px + (width / 2 - x_px) * where
        v = y_px + (height / 2 - y_px) * where
        _add_ghost(pixels, u, v, radius * width, level * strength)


def _add_ghost(pixels: Image, u: float, v: float, radius_px: float, level: float) -> None:
    height, width = pixels.shape[:2]
    r = int(radius_px) + 1
    x0, y0, x1, y1 = (
        max(round(u) - r, 0),
        max(round(v) - r, 0),
        min(round(u) + r, width),
        min(round(v) + r, height),
    )
    if x0 >= x1 or y0 >= y1:
        return
    patch = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
    cv2.circle(
        patch,
        (round(u) - x0, round(v) - y0),
        int(radius_px),
        (level * 0.6, level, level * 0.8),
        -1,
        cv2.LINE_AA,
    )
    cv2.add(pixels[y0:y1, x0:x1], patch, dst=pixels[y0:y1, x0:x1])


def blur_sideways(pixels: Image, length_px: int) -> Image:
    """Motion blur of a turning camera."""
    return np.asarray(cv2.blur(pixels, (length_px, 1)), np.uint8) if length_px > 1 else pixels


# Light of one drive: sky, haze and intensity.


@dataclass(frozen=True)
class Light:
    """Colours are BGR 0..255; ``gain_bgr`` multiplies every lit surface, ``haze_m`` is where haze covers 63 %."""

    weather: str
    sky_top_bgr: Bgr
    sky_low_bgr: Bgr
    haze_bgr: Bgr
    haze_m: float
    gain_bgr: Bgr
    lamps_on: bool
    wet: bool


def light_for(weather: str, rng: np.random.Generator) -> Light:
    """A light for one of the four plain weathers, a little different for every seed."""
    level = float(rng.uniform(0.85, 1.08))
    warm = float(rng.uniform(-0.06, 0.06))
    if weather == "night":
        return _night(rng)
    if weather == "rain":
        return _rain(level, rng)
    if weather == "glare":
        return _glare(level)
    blue = float(rng.uniform(0.8, 1.0))
    return Light(
        weather,
        sky_top_bgr=(228 * blue, 164 * blue, 104 * blue),
        sky_low_bgr=(238, 222, 200),
        haze_bgr=(226, 212, 196),
        haze_m=260,
        gain_bgr=(level * (1 - warm), level, level * (1 + warm)),
        lamps_on=False,
        wet=False,
    )


def _night(rng: np.random.Generator) -> Light:
    dark = float(rng.uniform(0.20, 0.34))
    sky = float(rng.uniform(0.7, 1.3))
    return Light(
        "night",
        sky_top_bgr=(30 * sky, 16 * sky, 12 * sky),
        sky_low_bgr=(62 * sky, 44 * sky, 38 * sky),
        haze_bgr=(48, 34, 30),
        haze_m=110,
        gain_bgr=(dark * 1.25, dark, dark * 0.92),
        lamps_on=True,
        wet=False,
    )


def _rain(level: float, rng: np.random.Generator) -> Light:
    grey = float(rng.uniform(118, 172))
    low = (grey + 18, grey + 14, grey + 10)
    return Light(
        "rain",
        sky_top_bgr=(grey - 28, grey - 34, grey - 38),
        sky_low_bgr=low,
        haze_bgr=low,
        haze_m=float(rng.uniform(65, 120)),
        gain_bgr=(0.68 * level, 0.66 * level, 0.64 * level),
        lamps_on=True,
        wet=True,
    )


def _glare(level: float) -> Light:
    return Light(
        "glare",
        sky_top_bgr=(210, 178, 150),
        sky_low_bgr=(196, 226, 250),
        haze_bgr=(178, 208, 236),
        haze_m=95,
        gain_bgr=(0.72 * level, 0.78 * level, 0.86 * level),
        lamps_on=False,
        wet=False,
    )
