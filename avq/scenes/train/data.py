"""Training pictures: rendered once into a cache of uint8 arrays at network size, then augmented."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from avq.scenes.dataset import TRAINING_SEED
from avq.scenes.drive import random_scene
from avq.scenes.labels import Image

if TYPE_CHECKING:
    from torch import Tensor

# The detector's input picture.
INPUT_HEIGHT_PX = 192
INPUT_WIDTH_PX = 320
PAD_VALUE = 114

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


_CHUNK = 100


@dataclass(frozen=True)
class Sample:
    """One letterboxed picture (192, 320, 3) uint8 BGR, boxes (N, 4) float32 xyxy in input pixels, classes (N,)."""

    pixels: Image
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]


def sample(seed: int) -> Sample:
    scene = random_scene(seed)
    pixels, scale = letterbox(scene.pixels)
    return Sample(pixels, scene.boxes_xyxy_px * np.float32(scale), scene.class_ids)


def _render_chunk(task: tuple[int, int]) -> list[Sample]:
    cv2.setNumThreads(1)
    first, count = task
    return [sample(first + i) for i in range(count)]


def build_cache(folder: pathlib.Path, scenes: int, workers: int) -> None:
    """Renders scenes ``TRAINING_SEED`` onwards into ``folder``; a finished cache of the same size is kept."""
    done = folder / "labels.npz"
    if done.exists() and len(np.load(done)["counts"]) == scenes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (scenes, INPUT_HEIGHT_PX, INPUT_WIDTH_PX, 3)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", mode="w+", dtype=np.uint8, shape=shape)
    tasks = [(TRAINING_SEED + at, min(_CHUNK, scenes - at)) for at in range(0, scenes, _CHUNK)]
    boxes: list[NDArray[np.float32]] = []
    classes: list[NDArray[np.int64]] = []
    counts: list[int] = []
    with ProcessPoolExecutor(workers) as pool:
        for chunk in pool.map(_render_chunk, tasks):
            for one in chunk:
                pictures[len(counts)] = one.pixels
                counts.append(len(one.boxes))
                boxes.append(one.boxes)
                classes.append(one.class_ids)
            print(f"\rrendered {len(counts)}/{scenes}", end="", flush=True)
    print()
    pictures.flush()
    np.savez(done, boxes=np.concatenate(boxes), classes=np.concatenate(classes), counts=np.array(counts))


class Cache:
    """Random access to a cache folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.pictures: NDArray[Any] = np.load(folder / "pictures.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npz")
        ends = np.cumsum(labels["counts"])
        self.boxes = np.split(labels["boxes"], ends[:-1])
        self.classes = np.split(labels["classes"], ends[:-1])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.array(self.pictures[index]), self.boxes[index].copy(), self.classes[index])


def vary(one: Sample, rng: np.random.Generator, zoom_share: float) -> Sample:
    """Mirror, zoom and shift, brightness and colour."""
    pixels, boxes, classes = one.pixels, one.boxes, one.class_ids
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
        boxes = np.stack(
            [INPUT_WIDTH_PX - boxes[:, 2], boxes[:, 1], INPUT_WIDTH_PX - boxes[:, 0], boxes[:, 3]], 1
        )
    if rng.random() < zoom_share:
        pixels, boxes, classes = _zoom(pixels, boxes, classes, rng)
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-12, 12), 0, 255).astype(np.uint8)
    toned = cv2.LUT(np.ascontiguousarray(pixels), np.ascontiguousarray(table[None]))
    return Sample(np.asarray(toned, np.uint8), boxes.astype(np.float32), classes)


def _zoom(
    pixels: Image, boxes: NDArray[np.float32], classes: NDArray[np.int64], rng: np.random.Generator
) -> tuple[Image, NDArray[np.float32], NDArray[np.int64]]:
    """Scales by 0.8 to 1.6 around a random point; boxes that leave the picture for the most part are dropped."""
    scale = float(np.exp(rng.uniform(np.log(0.8), np.log(1.6))))
    dx = float(rng.uniform(0, 1)) * INPUT_WIDTH_PX * (1 - scale)
    dy = float(rng.uniform(0.25, 0.75)) * INPUT_HEIGHT_PX * (1 - scale)
    shift = np.array([[scale, 0, dx], [0, scale, dy]])
    border = (PAD_VALUE, PAD_VALUE, PAD_VALUE)
    pixels = np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(pixels), shift, (INPUT_WIDTH_PX, INPUT_HEIGHT_PX), borderValue=border
        ),
        np.uint8,
    )
    moved = boxes * scale + np.array([dx, dy, dx, dy])
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    limits = np.array([INPUT_WIDTH_PX, INPUT_HEIGHT_PX, INPUT_WIDTH_PX, INPUT_HEIGHT_PX])
    clipped = np.clip(moved, 0, limits)
    left = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    keep = left > 0.25 * np.maximum(area, 1e-6)
    return pixels, clipped[keep].astype(np.float32), classes[keep]


@dataclass(frozen=True)
class Batch:
    """images (B,3,192,320) float32 0..1; boxes (B,M,4) and classes (B,M), padded with class -1."""

    images: Tensor
    boxes: Tensor
    classes: Tensor


def collate(samples: list[Sample]) -> Batch:
    most = max([1, *(len(s.boxes) for s in samples)])
    boxes = np.zeros((len(samples), most, 4), np.float32)
    classes = np.full((len(samples), most), -1, np.int64)
    for row, one in enumerate(samples):
        boxes[row, : len(one.boxes)] = one.boxes
        classes[row, : len(one.boxes)] = one.class_ids
    import torch  # late: scenes and letterboxes are used without it

    stacked = torch.from_numpy(np.stack([s.pixels for s in samples]))
    images = stacked.permute(0, 3, 1, 2).float().div_(255)
    return Batch(
        images.contiguous(memory_format=torch.channels_last),
        torch.from_numpy(boxes),
        torch.from_numpy(classes),
    )


class Batches:
    """Endless shuffled, varied batches. ``zoom_share`` may be lowered as the training ends."""

    def __init__(self, cache: Cache, size: int, seed: int) -> None:
        self.cache, self.size, self.zoom_share = cache, size, 0.6
        self._rng = np.random.default_rng((seed, 51))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = self._rng.permutation(len(self.cache))
            for at in range(0, len(order) - self.size + 1, self.size):
                chosen = order[at : at + self.size]
                yield collate([vary(self.cache[int(i)], self._rng, self.zoom_share) for i in chosen])
