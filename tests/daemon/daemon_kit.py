"""A served bundle without a network: real preprocessing and decoding around an engine with canned outputs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from avq.daemon import Parts
from avq.decoders import DetectionDecoder
from avq.preprocess import Preprocessor
from avq.types import DecoderSpec, PreprocessSpec, SessionOptions
from tests.engines.null import NullEngine

LABELS = ("car", "person")


def canned_output(boxes: int = 20, width_px: int = 64, height_px: int = 64, anchors: int = 84) -> np.ndarray:
    """A YOLOv8 output (1, 4 + classes, anchors) with ``boxes`` that survive NMS and noise below the threshold."""
    rng = np.random.default_rng(5)
    table = np.zeros((1, 4 + len(LABELS), anchors), np.float32)
    table[0, 4:] = rng.uniform(0, 0.2, table[0, 4:].shape)
    columns = int(np.ceil(np.sqrt(boxes)))
    for index in range(boxes):
        x, y = (index % columns + 0.5) / columns * width_px, (index // columns + 0.5) / columns * height_px
        table[0, :4, index] = x, y, width_px / columns / 2, height_px / columns / 2
        table[0, 4 + index % len(LABELS), index] = 0.5 + 0.4 * index / boxes
    return table


def yolov8_spec() -> DecoderSpec:
    params = {"output": "out", "planes": True, "format": "cxcywh", "normalised": False, "size_px": [64, 64]}
    return DecoderSpec("yolov8", params, num_classes=len(LABELS))


def null_parts(busy_ms: float = 0.0, boxes: int = 2) -> Parts:
    engine = NullEngine({"out": canned_output(boxes)}, int(busy_ms * 1e6))
    return Parts(
        Preprocessor(PreprocessSpec(width_px=64, height_px=64)),
        engine.open(b"", SessionOptions()),
        DetectionDecoder(yolov8_spec()),
        LABELS,
        "digest",
        (64, 64),
    )


def picture_folder(folder: Path, count: int) -> Path:
    """Pictures whose red channel is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for seq in range(count):
        cv2.imwrite(str(folder / f"{seq:04d}.png"), np.full((48, 64, 3), seq % 256, np.uint8))
    return folder


def open_descriptors() -> dict[int, str]:
    """Descriptor -> what it points at, of this process."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor
            found[int(entry.name)] = str(entry.readlink())
    return found
