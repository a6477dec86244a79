"""Writers of ten dialects, after what their exporters put into files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from tests.builder.lift.corpus.nets import Net
from tests.builder.lift.corpus.writer import Writer, along, amax_scale, rounded

_INT32_MAX = 2**31 - 1


@dataclass
class PytorchQuantization(Writer):
    """Q and DQ around activations and float weights; zero points are Casts of a float constant."""

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        scale = np.asarray(max(-low, high) / 127, np.float32)
        self.scales[tensor] = scale
        self._pair(tensor, self.store(f"{result}_s", scale), self._zero(result, ()), result)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        self.store(name, value)
        scale = amax_scale(value, axis)
        self.scales[name] = scale
        attributes = {} if axis is None else {"axis": axis}
        result = f"{name}_dq"
        zero = self._zero(result, scale.shape)
        return self._pair(name, self.store(f"{result}_s", scale), zero, result, **attributes)

    def _zero(self, result: str, shape: tuple[int, ...]) -> str:
        self.store(f"{result}_zf", np.zeros(shape, np.float32))
        return self.add("Cast", [f"{result}_zf"], f"{result}_z", to=TensorProto.INT8)

    def _pair(self, source: str, scale: str, zero: str, result: str, **attributes: object) -> str:
        self.add("QuantizeLinear", [source, scale, zero], f"{result}_q", **attributes)
        return self.add("DequantizeLinear", [f"{result}_q", scale, zero], result, **attributes)


@dataclass
class ModelOptimizer(PytorchQuantization):
    """The same with a pair per reader, Identity between, and scales in Constant nodes."""

    own_pairs: bool = True
    producer: str = "modelopt"

    def store(self, name: str, value: np.ndarray, kind: int | None = None) -> str:
        if not name.endswith(("_s", "_zf")):
            return super().store(name, value, kind)
        node = onnx.helper.make_node("Constant", [], [name], name=name)
        node.attribute.append(
            onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.asarray(value)))
        )
        self.nodes.append(node)
        return name

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        self.add("Identity", [tensor], f"{result}_same")
        super().activation(f"{result}_same", low, high, result)


@dataclass
class BrevitasQcdq(Writer):
    """Q, Clip, DQ on activations; integer weights behind Clip and DQ without a Q; biases in 32 bits."""

    bits: int = 4
    producer: str = "brevitas"

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        signed = low < 0
        top = (1 << (self.bits - 1)) - 1 if signed else (1 << self.bits) - 1
        bottom = -top - 1 if signed else 0
        scale = np.asarray(max(-low, high) / top, np.float32)
        self.scales[tensor] = scale
        kind = np.int8 if signed else np.uint8
        names = [tensor, self.store(f"{result}_s", scale), self.store(f"{result}_z", np.zeros((), kind))]
        self.add("QuantizeLinear", names, f"{result}_q")
        clipped = self._clip(f"{result}_q", result, bottom, top, kind)
        self.add("DequantizeLinear", [clipped, *names[1:]], result)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        top = (1 << (self.bits - 1)) - 1
        scale = amax_scale(value, axis, top)
        self.scales[name] = scale
        stored = self.store(f"{name}_int", rounded(value, scale, axis, -top, top).astype(np.int8))
        clipped = self._clip(stored, name, -top, top, np.int8)
        zero = self.store(f"{name}_z", np.zeros(scale.shape, np.int8))
        attributes = {} if axis is None else {"axis": axis}
        given = [clipped, self.store(f"{name}_s", scale), zero]
        return self.add("DequantizeLinear", given, f"{name}_dq", **attributes)

    def bias(self, name: str, value: np.ndarray, scale: np.ndarray) -> str:
        return int32_bias(self, name, value, scale)

    def _clip(self, source: str, place: str, low: int, high: int, kind: type) -> str:
        ends = [self.store(f"{place}_{end}", np.asarray(v, kind)) for end, v in (("lo", low), ("hi", high))]
        return self.add("Clip", [source, *ends], f"{place}_clipped")


def int32_bias(writer: Writer, name: str, value: np.ndarray, scale: np.ndarray) -> str:
    """A bias in the accumulator's scale, stored in 32 bits behind a lone DQ."""
    steps = np.clip(np.rint(value / scale), -_INT32_MAX, _INT32_MAX).astype(np.int32)
    stored = writer.store(f"{name}_quantized", steps)
    scale_name = writer.store(f"{name}_s", np.asarray(scale, np.float32))
    zero = writer.store(f"{name}_z", np.zeros(np.shape(scale), np.int32))
    attributes = {"axis": 0} if np.ndim(scale) else {}
    return writer.add("DequantizeLinear", [stored, scale_name, zero], f"{name}_dq", **attributes)


@dataclass
class Qonnx(Writer):
    """Quant nodes in Brevitas' domain: bits, sign and narrowness are inputs and attributes."""

    bits: int = 5
    opset: int = 11
    domains: tuple[str, ...] = ("qonnx.custom_op.general",)

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        signed = low < 0
        top = (1 << (self.bits - 1)) - 1 if signed else (1 << self.bits) - 1
        scale = np.asarray(max(-low, high) / top, np.float32)
        self._quant(tensor, scale, result, signed=signed, narrow=False, bits=self.bits)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        self.store(name, value)
        scale = along(amax_scale(value, axis, (1 << (self.bits - 1)) - 1), value, axis)
        return self._quant(name, scale, f"{name}_dq", signed=True, narrow=True, bits=self.bits)

    def _quant(
        self,
        source: str,
        scale: np.ndarray,
        result: str,
        *,
        signed: bool,
        narrow: bool,
        bits: int,
        zero: float = 0,
    ) -> str:
        given = [
            self.store(f"{result}_s", scale),
            self.store(f"{result}_z", np.asarray(zero, np.float32)),
            self.store(f"{result}_b", np.asarray(bits, np.float32)),
        ]
        self.nodes.append(
            onnx.helper.make_node(
                "Quant",
                [source, *given],
                [result],
                name=result,
                domain=self.domains[0],
                signed=int(signed),
                narrow=int(narrow),
                rounding_mode="ROUND",
            )
        )
        return result


@dataclass
class NncfFakeQuantize(Writer):
    """FakeQuantize in OpenVINO's domain: ends and levels; 255 levels for weights."""

    domains: tuple[str, ...] = ("org.openvinotoolkit",)
    weight_levels: int = 255

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        if low >= 0:
            ends = np.float32(0), np.float32(high)
        else:  # 256 levels around zero reach one step farther below
            reach = max(-low, high)
            ends = np.float32(-reach * 128 / 127), np.float32(reach)
        self._fake(tensor, np.asarray(ends[0]), np.asarray(ends[1]), 256, result)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        self.store(name, value)
        reach = along(amax_scale(value, axis, 1), value, axis)
        return self._fake(name, -reach, reach, self.weight_levels, f"{name}_fq")

    def _fake(self, source: str, low: np.ndarray, high: np.ndarray, levels: int, result: str) -> str:
        ends = {"il": low, "ih": high, "ol": low, "oh": high}
        given = [self.store(f"{result}_{end}", value) for end, value in ends.items()]
        self.nodes.append(
            onnx.helper.make_node(
                "FakeQuantize", [source, *given], [result], name=result, domain=self.domains[0], levels=levels
            )
        )
        return result


@dataclass
class NncfQdq(PytorchQuantization):
    """Unsigned bytes with a zero point for activations, 7-bit float weights behind a pair."""

    producer: str = "nncf"

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.asarray((high - low) / 255, np.float32)
        zero = self.store(f"{result}_z", np.asarray(np.clip(np.rint(-low / scale), 0, 255), np.uint8))
        self._pair(tensor, self.store(f"{result}_s", scale), zero, result)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        self.store(name, value)
        scale = amax_scale(value, axis, 63)
        zero = self.store(f"{name}_z", np.zeros(scale.shape, np.int8))
        attributes = {} if axis is None else {"axis": axis}
        return self._pair(name, self.store(f"{name}_s", scale), zero, f"{name}_dq", **attributes)


@dataclass
class OnnxruntimeQdq(Writer):
    """Unsigned activations with zero points everywhere, stored weights, 32-bit biases, outputs included."""

    everything: bool = True
    producer: str = "onnx.quantize"
    kind: type = np.uint8
    domain: str = ""
    opset: int = 17

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        info = np.iinfo(self.kind)
        scale = np.asarray((high - low) / (info.max - info.min), np.float32)
        self.scales[tensor] = scale
        zero: np.ndarray = np.asarray(
            np.clip(info.min + np.rint(-low / scale), info.min, info.max), self.kind
        )
        given = [self.store(f"{result}_s", scale), self.store(f"{result}_z", zero)]
        self.add("QuantizeLinear", [tensor, *given], f"{result}_q", domain=self.domain)
        self.add("DequantizeLinear", [f"{result}_q", *given], result, domain=self.domain)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        scale = amax_scale(value, axis)
        self.scales[name] = scale
        stored = self.store(f"{name}_quantized", rounded(value, scale, axis, -127, 127).astype(np.int8))
        given = [self.store(f"{name}_s", scale), self.store(f"{name}_z", np.zeros(scale.shape, np.int8))]
        attributes = {} if axis is None else {"axis": axis}
        return self.add("DequantizeLinear", [stored, *given], f"{name}_dq", **attributes)

    def bias(self, name: str, value: np.ndarray, scale: np.ndarray) -> str:
        return int32_bias(self, name, value, scale)


@dataclass
class OnnxruntimeSigned16(OnnxruntimeQdq):
    """Sixteen bits in onnxruntime's own domain, signed with zero points."""

    kind: type = np.int16
    domain: str = "com.microsoft"
    domains: tuple[str, ...] = ("com.microsoft",)


@dataclass
class OnnxruntimeSigned8(OnnxruntimeQdq):
    """Signed bytes with zero points other than 0."""

    kind: type = np.int8


@dataclass
class VitisAi(PytorchQuantization):
    """Powers of two, weights and biases in float behind pairs, ``::`` in names, Constant zero points."""

    everything: bool = True
    opset: int = 13

    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        scale = _power_of_two(max(-low, high) / 127)
        self.scales[tensor] = scale
        self._named(tensor, scale, result)

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        self.scales[name] = _power_of_two(float(np.abs(value).max()) / 127)
        return self._named(self.store(name, value), self.scales[name], f"Net::{name}_dq")

    def bias(self, name: str, value: np.ndarray, scale: np.ndarray) -> str:
        return self._named(
            self.store(name, value), _power_of_two(float(np.abs(value).max()) / 127), f"Net::{name}_dq"
        )

    def _named(self, source: str, scale: np.ndarray, result: str) -> str:
        zero = self.store(f"{result}::z", np.zeros((), np.int8))
        return self._pair(source, self.store(f"{result}::s", scale), zero, result)


def _power_of_two(scale: float) -> np.ndarray:
    return np.asarray(2.0 ** np.ceil(np.log2(scale)), np.float32)


Dialect = Callable[[Net], Writer]
DIALECTS: dict[str, Dialect] = {
    "pytorch-quantization": PytorchQuantization,
    "modelopt": ModelOptimizer,
    "brevitas-qcdq": BrevitasQcdq,
    "qonnx": Qonnx,
    "nncf-fakequantize": NncfFakeQuantize,
    "nncf-qdq": NncfQdq,
    "onnxruntime-u8": OnnxruntimeQdq,
    "onnxruntime-s8": OnnxruntimeSigned8,
    "onnxruntime-16bit": OnnxruntimeSigned16,
    "vitisai": VitisAi,
}
