"""The sky with clouds, and the far skyline: one wide picture per drive, shifted sideways as the road bends."""

from __future__ import annotations

import cv2
import numpy as np

from avq.scenes.labels import Image
from avq.scenes.light import Light

MARGIN_PX = 96


def make_sky(width_px: int, height_px: int, light: Light, rng: np.random.Generator) -> Image:
    """(height/2 + 24) x (width + 2 margin) x 3: its last row is where the ground begins."""
    rows, columns = height_px // 2 + 24, width_px + 2 * MARGIN_PX
    blend = np.linspace(0, 1, rows)[:, None, None] ** 1.4
    fade = np.array(light.sky_top_bgr) * (1 - blend) + np.array(light.sky_low_bgr) * blend
    sky = np.asarray(np.repeat(fade, columns, 1), np.float32)
    clouds = _clouds(rows, columns, rng)[..., None]
    if light.weather == "night":
        _add_stars(sky, rng)
        sky += clouds * np.array([16, 12, 11], np.float32)
    else:
        white = (
            np.array((250, 250, 250), np.float32)
            if light.weather != "rain"
            else np.array(light.haze_bgr, np.float32) * 0.82
        )
        sky += (white - sky) * clouds * 0.75
    _add_skyline(sky, light, rng)
    return np.clip(sky, 0, 255).astype(np.uint8)


def _clouds(
    rows: int, columns: int, rng: np.random.Generator
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Cover 0..1, thinner towards the top: a few octaves of stretched noise."""
    cover = np.zeros((rows, columns), np.float32)
    for octave, strength in ((3, 0.55), (6, 0.30), (12, 0.15)):
        noise = rng.random((octave, octave * 3)).astype(np.float32)
        cover += strength * cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    threshold = float(rng.uniform(0.42, 0.62))
    return np.asarray(np.clip((cover - threshold) * 4.0, 0, 1), np.float32)


def _add_stars(sky: np.ndarray[tuple[int, ...], np.dtype[np.float32]], rng: np.random.Generator) -> None:
    count = 60
    y = rng.integers(0, sky.shape[0] - 40, count)
    x = rng.integers(0, sky.shape[1], count)
    sky[y, x] += rng.uniform(30, 120, (count, 1))


def _add_skyline(
    sky: np.ndarray[tuple[int, ...], np.dtype[np.float32]], light: Light, rng: np.random.Generator
) -> None:
    """Hills, then distant blocks, almost lost in the haze."""
    rows, columns = sky.shape[:2]
    haze = np.array(light.haze_bgr)
    dark = np.array((110, 105, 92)) * np.array(light.gain_bgr)
    x = np.arange(columns)
    for layer, (height, mix) in enumerate(((0.13, 0.25), (0.08, 0.42))):
        phase = rng.uniform(0, 6.28, 3)
        ridge = (
            0.5
            + 0.25 * np.sin(x / 90 + phase[0])
            + 0.15 * np.sin(x / 37 + phase[1])
            + 0.08 * np.sin(x / 13 + phase[2])
        )
        if layer:
            blocks = np.repeat(rng.uniform(0.2, 1.0, columns // 18 + 1), 18)[:columns]
            ridge = np.where(blocks > 0.35, blocks, ridge * 0.5)
        top = (rows - 22 - ridge * height * rows).astype(int)
        mask = np.arange(rows)[:, None] >= top[None, :]
        sky[mask] = haze * (1 - mix) + dark * mix
        if layer and light.lamps_on:
            lit = mask & (rng.random((rows, columns)) < 0.02)
            sky[lit] = (90, 150, 190)
