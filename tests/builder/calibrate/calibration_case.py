"""A small convolution net on uint8 pictures, and pictures to calibrate it on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from avq.builder.calibrate.run import CalibrationRun
from avq.builder.pictures.dataset import Item, open_set
from avq.engines import engine_by_name
from avq.types import PreprocessSpec

SPEC = PreprocessSpec(width_px=48, height_px=32, channel_order="BGR")
TENSORS = ("silu", "relu", "picture", "narrow")
DIGEST = "ab" * 32


def small_net() -> onnx.ModelProto:
    """Cast, convolution, SiLU, convolution, ReLU, 1x1 convolution; (1, 3, 32, 48) uint8 in."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.02, (8, 3, 3, 3)),
        "w2": rng.normal(0, 0.3, (6, 8, 3, 3)),
        "w3": rng.normal(0, 1.0, (2, 6, 1, 1)),
    }
    padded: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Cast", ["picture"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["real", "w1"], ["wide"], **padded),
        helper.make_node("Sigmoid", ["wide"], ["gate"]),
        helper.make_node("Mul", ["wide", "gate"], ["silu"]),
        helper.make_node("Conv", ["silu", "w2"], ["middle"], **padded),
        helper.make_node("Relu", ["middle"], ["relu"]),
        helper.make_node("Conv", ["relu", "w3"], ["narrow"], kernel_shape=[1, 1]),
        helper.make_node("Exp", ["narrow"], ["grown"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, 3, 32, 48])],
        [helper.make_tensor_value_info("grown", TensorProto.FLOAT, [1, 2, 32, 48])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Smooth noise of differing size and contrast, as PNG and JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        height, width = (int(n) for n in rng.integers(20, 90, 2))
        coarse = rng.normal(120, 10 + 5 * (number % 9), (5, 7, 3))
        pixels = np.clip(cv2.resize(coarse, (width, height)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:03d}.{'png' if number % 2 else 'jpg'}"), pixels)
    return folder


def run_on(items: tuple[Item, ...], **options: object) -> CalibrationRun:
    """A run of the small net on onnxruntime."""
    engine = engine_by_name("onnxruntime")
    return CalibrationRun(small_net(), TENSORS, items, SPEC, DIGEST, engine, **options)  # type: ignore[arg-type]


def die_in_the_middle(folder: Path, checkpoint: Path, pictures: int) -> None:
    """Calibrate until ``pictures`` are done, then be killed."""

    def kill(done: int, _: int) -> None:
        if done >= pictures:
            os.kill(os.getpid(), signal.SIGKILL)

    run_on(
        open_set(folder).items,
        checkpoint=checkpoint,
        checkpoint_every=4,
        checkpoint_seconds=0.0,
        progress=kill,
    ).run()


if __name__ == "__main__":
    die_in_the_middle(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
