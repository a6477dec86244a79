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
    gain = (level * (1 - warm), level, level * (1 + warm))
    if weather == "night":
        dark = float(rng.uniform(0.20, 0.34))
        sky = float(rng.uniform(0.7, 1.3))
        low = (62 * sky, 44 * sky, 38 * sky)
        return Light(
            weather,
            (30 * sky, 16 * sky, 12 * sky),
            low,
            (48, 34, 30),
            110,
            (dark * 1.25, dark, dark * 0.92),
            True,
            False,
        )
    if weather == "rain":
        grey = float(rng.uniform(118, 172))
        low = (grey + 18, grey + 14, grey + 10)
        gain = (0.68 * level, 0.66 * level, 0.64 * level)
        return Light(
            weather,
            (grey - 28, grey - 34, grey - 38),
            low,
            low,
            float(rng.uniform(65, 120)),
            gain,
            True,
            True,
        )
    if weather == "glare":
        return Light(
            weather,
            (210, 178, 150),
            (196, 226, 250),
            (178, 208, 236),
            95,
            (0.72 * level, 0.78 * level, 0.86 * level),
            False,
            False,
        )
    blue = float(rng.uniform(0.8, 1.0))
    return Light(
        weather,
        (228 * blue, 164 * blue, 104 * blue),
        (238, 222, 200),
        (226, 212, 196),
        260,
        gain,
        False,
        False,
    )
