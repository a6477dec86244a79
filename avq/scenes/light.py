"""The light of one drive: sky, haze and how strongly things are lit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from avq.scenes.labels import Bgr


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
