"""A one-convolution network small enough to carry as text, and its answer in plain numpy."""

from __future__ import annotations

import base64

import numpy as np

from avq.types import F32, U8

#: ONNX, opset 17: picture uint8 1x3x8x8 -> Cast -> Conv 1x1 (3 to 2 channels, bias) -> Relu -> y float32 1x2x8x8.
_ONNX = (
    "CAgSA2F2cTrXAQojCgdwaWN0dXJlEgF4GgRjYXN0IgRDYXN0KgkKAnRvGAGgAQIKGAoBeAoBdwoBYhIBYxoEY29udiIEQ29udgoSCgFj"
    "EgF5GgRyZWx1IgRSZWx1EgZzYW1wbGUqJwgCCAMIAQgBEAFCAXdKGAAAIL8AAMC+AAAAvgAAAD4AAMA+AAAgPyoRCAIQAUIBYkoIAAAA"
    "PwAAgL5aIQoHcGljdHVyZRIWChQIAhIQCgIIAQoCCAMKAggICgIICGIbCgF5EhYKFAgBEhAKAggBCgIIAgoCCAgKAggIQgQKABAR"
)
INPUT, OUTPUT = "picture", "y"
SHAPE = (1, 3, 8, 8)


def sample_model() -> bytes:
    """The network as an ONNX file."""
    return base64.b64decode(_ONNX)


def sample_picture(seed: int) -> U8:
    """Noise of the network's input shape, (1, 3, 8, 8) uint8."""
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def sample_answer(picture: U8) -> F32:
    """What the network computes, (1, 2, 8, 8) float32."""
    weight = ((np.arange(6) - 2.5) / 4).reshape(2, 3)
    bias = np.array([0.5, -0.25]).reshape(1, 2, 1, 1)
    answer = np.einsum("oc,bchw->bohw", weight, picture.astype(np.float64)) + bias
    positive: F32 = np.maximum(answer, 0.0).astype(np.float32)
    return positive
