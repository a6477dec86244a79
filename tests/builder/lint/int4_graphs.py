"""Small networks around 4-bit integers, drawn without asking whether they are legal: the real builder says that.

One or two layers each: matrix products or convolutions, weights of 4 or 8 bits with one scale, one per channel or one
per block, data in float, 8 or 4 bits, and now and then what goes wrong in practice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS, SIDE_PX = 10, 8
_RANGE = {
    TensorProto.INT4: (-7, 8),
    TensorProto.INT8: (-100, 101),
    TensorProto.UINT4: (0, 16),
}


@dataclass
class Sketch:
    """Collects nodes; ``half`` networks compute in float16 between their ports."""

    seed: int
    rng: np.random.Generator = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.opset = int(self.rng.choice([21, 22, 23]))
        self.half = self.chance(0.5)
        self.float = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def op(self, op_type: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=f"{op_type}_{name}", **attributes))
        return name

    def array(self, value: np.ndarray) -> str:
        return self.tensor(numpy_helper.from_array(np.asarray(value)))

    def tensor(self, tensor: onnx.TensorProto) -> str:
        tensor.name = f"c{len(self.constants)}"
        self.constants.append(tensor)
        return tensor.name

    def integers(self, shape: tuple[int, ...], kind: Any, value: int | None = None) -> str:
        low, high = _RANGE[kind]
        drawn = self.rng.integers(low, high, shape) if value is None else np.full(shape, value)
        return self.tensor(helper.make_tensor("", kind, shape, np.ravel(drawn).tolist()))

    def reals(self, shape: tuple[int, ...], kind: int) -> np.ndarray:
        return self.rng.uniform(0.01, 0.03, shape).astype(helper.tensor_dtype_to_np_dtype(kind))

    # Q/DQ

    def parameters(self, shape: tuple[int, ...], kind: int) -> tuple[list[str], dict[str, Any]]:
        """Scale and zero point, and what DequantizeLinear has to be told to write the network's float type."""
        scale_kind, told = self.float, {}
        if self.opset >= 23 and self.chance(0.15):
            scale_kind = TensorProto.FLOAT if self.half else TensorProto.FLOAT16
            told = {"output_dtype": self.float}
        zero = int(self.rng.integers(1, 7)) if self.chance(0.03) else 0
        return [self.array(self.reals(shape, scale_kind)), self.integers(shape, kind, zero)], told

    def weight(self, shape: tuple[int, ...], grid: Grid) -> str:
        parameters, told = self.parameters(grid.scales(shape), grid.kind)
        if self.chance(0.25) and not told:
            source = self.array(
                self.rng.normal(0, 0.05, shape).astype(helper.tensor_dtype_to_np_dtype(self.float))
            )
            integers = self.op("QuantizeLinear", [source, *parameters], **grid.attributes)
        else:
            integers = self.integers(shape, grid.kind)
            if self.chance(0.05):
                integers = self.op("Identity", [integers])
        return self.op("DequantizeLinear", [integers, *parameters], **grid.attributes, **told)

    def data(self, x: str) -> str:
        """``x``, or its Q/DQ copy in 8 or 4 bits, one scale; now and then something between it and its reader."""
        kind = self.pick(None, None, TensorProto.INT8, TensorProto.INT8, TensorProto.INT4)
        if kind is None:
            return x
        parameters, told = self.parameters((), kind)
        quantized = self.op("QuantizeLinear", [x, *parameters])
        if self.chance(0.15):
            quantized = self.op("Identity", [quantized])
        back = self.op("DequantizeLinear", [quantized, *parameters], **told)
        between = self.pick(None, None, None, "Relu", "Neg", "Identity")
        return back if between is None else self.op(between, [back])

    def model(self, shape: list[int], outputs: list[str]) -> onnx.ModelProto:
        names = [f"out{i}" for i in range(len(outputs))]
        for name, source in zip(names, outputs, strict=True):
            self.nodes.append(
                helper.make_node("Cast", [source], [name], name=f"end_{name}", to=TensorProto.FLOAT)
            )
        graph = helper.make_graph(
            self.nodes,
            f"seed{self.seed}",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


@dataclass(frozen=True)
class Grid:
    """``kind`` of integer; one scale without an axis, else one per channel, or per block of ``block`` along it."""

    kind: int
    axis: int | None = None
    block: int = 0

    @property
    def attributes(self) -> dict[str, Any]:
        told = {} if self.axis is None else {"axis": self.axis}
        return {**told, "block_size": self.block} if self.block else told

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.axis is None:
            return ()
        if not self.block:
            return (shape[self.axis],)
        return tuple(-(-n // self.block) if i == self.axis else n for i, n in enumerate(shape))


def _product(sketch: Sketch, x: str, columns: int, outputs: int) -> str:
    turned = sketch.chance(0.3)
    shape = (outputs, columns) if turned else (columns, outputs)
    kind = sketch.pick(TensorProto.INT4, TensorProto.INT4, TensorProto.INT4, TensorProto.INT8)
    if sketch.chance(0.04):
        kind = TensorProto.UINT4
    channel = 0 if turned else 1
    grid = sketch.pick(
        Grid(kind),
        Grid(kind, channel),
        Grid(kind, channel),
        Grid(kind, 1 - channel if kind == TensorProto.INT4 else channel),
        Grid(kind, sketch.pick(0, 1), sketch.pick(8, 16, 32)),
    )
    weight = sketch.weight(shape, grid)
    if turned:
        return sketch.op("Gemm", [x, weight], transB=1)
    return sketch.op(str(sketch.pick("MatMul", "Gemm")), [x, weight])


def products(seed: int) -> onnx.ModelProto:
    """One or two matrix products, [10, 32 or 31] to [10, outputs]."""
    sketch = Sketch(seed)
    columns = int(sketch.pick(32, 32, 32, 31))
    x = sketch.op("Cast", ["x"], to=sketch.float)
    width = columns
    for _ in range(int(sketch.rng.integers(1, 3))):
        outputs = int(sketch.pick(16, 32, 33)) if width % 2 else 32
        x, width = _product(sketch, sketch.data(x), width, outputs), outputs
        x = sketch.op("Relu", [x])
    return sketch.model([ROWS, columns], [x])


def convolutions(seed: int) -> onnx.ModelProto:
    """One or two convolutions of 32 channels, plain, depthwise or transposed."""
    sketch = Sketch(seed)
    x = sketch.op("Cast", ["x"], to=sketch.float)
    for _ in range(int(sketch.rng.integers(1, 3))):
        kind = sketch.pick(TensorProto.INT4, TensorProto.INT4, TensorProto.INT8)
        reader = str(sketch.pick("plain", "plain", "depthwise", "transposed"))
        shape = (32, 1, 3, 3) if reader == "depthwise" else (32, 32, 3, 3)
        channel = 1 if reader == "transposed" else 0
        grid = Grid(kind, channel) if reader == "depthwise" or sketch.chance(0.7) else Grid(kind)
        if kind == TensorProto.INT4 and sketch.chance(0.15):
            grid = Grid(kind, *sketch.pick((3, 3), (2, 3), (1, 16) if reader != "depthwise" else (3, 3)))
        inputs = [sketch.data(x), sketch.weight(shape, grid)]
        op_type = "ConvTranspose" if reader == "transposed" else "Conv"
        group = {"group": 32} if reader == "depthwise" else {}
        x = sketch.op("Relu", [sketch.op(op_type, inputs, pads=[1] * 4, **group)])
    return sketch.model([1, 32, SIDE_PX, SIDE_PX], [x])
