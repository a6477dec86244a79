"""Dialect writers with one habit that a pitfall is about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from tests.builder.lift.corpus.dialects import PytorchQuantization


@dataclass
class AlongInputs(PytorchQuantization):
    """Scales of a transposed convolution along axis 0, where a convolution has its output channels."""

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        return super().weight(name, value, 0 if name == "t1.w" else axis)


@dataclass
class FourBitBlocks(PytorchQuantization):
    """Gemm weights stored in four bits, one scale per four inputs."""

    opset: int = 21

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        if name != "g1.w":
            return super().weight(name, value, axis)
        blocks = value.reshape(16, 2, 4)
        scale = np.asarray(np.abs(blocks).max(axis=2) / 7, np.float32)
        steps = np.clip(np.rint(blocks / scale[:, :, None]), -7, 7).reshape(value.shape)
        stored = self.store(f"{name}_int4", steps.astype(np.int64), TensorProto.INT4)
        zero = self.store(f"{name}_z", np.zeros((16, 2), np.int64), TensorProto.INT4)
        given = [stored, self.store(f"{name}_s", scale), zero]
        return self.add("DequantizeLinear", given, f"{name}_dq", axis=1, block_size=4)


@dataclass
class Amax128(PytorchQuantization):
    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        result = super().weight(name, value, axis)
        scale = numpy_helper.to_array(self.tensors[f"{name}_dq_s"]) * np.float32(127 / 128)
        self.tensors[f"{name}_dq_s"] = numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_dq_s")
        return result
