"""Random detectors with Q/DQ pairs, put together from the blocks that real ones are made of.

Legal by construction: what stands here is the ground truth that lint and the parser are held against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = (13, 14, 16, 17, 18, 19, 20, 21, 22, 23)
SIDE_PX = 16


@dataclass
class Value:
    """A feature map [1, channels, size, size]."""

    name: str
    channels: int
    size: int


@dataclass
class Site:
    """One pair. ``q`` is None where the weights lie as integers already."""

    kind: str  # "data" | "weight"
    q: onnx.NodeProto | None
    dq: onnx.NodeProto
    reader: str = ""

    @property
    def pair(self) -> list[onnx.NodeProto]:
        return [node for node in (self.q, self.dq) if node is not None]


@dataclass
class Made:
    """A model with the places where faults can be put."""

    proto: onnx.ModelProto
    sites: list[Site]
    opset: int
    half: bool

    def data(self) -> list[Site]:
        return [site for site in self.sites if site.kind == "data"]

    def weights(self, *readers: str) -> list[Site]:
        return [s for s in self.sites if s.kind == "weight" and (not readers or s.reader in readers)]

    def nodes(self, *op_types: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type in op_types]

    def get(self, name: str) -> np.ndarray | None:
        """The constant of that name, of an initializer or a Constant node."""
        holder = self._holder(name)
        return None if holder is None else numpy_helper.to_array(holder)

    def array(self, name: str) -> np.ndarray:
        """The constant of that name, which the graph has."""
        value = self.get(name)
        assert value is not None, name
        return value

    def put(self, name: str, value: np.ndarray | onnx.TensorProto) -> None:
        """Replace a constant, or add one."""
        tensor = (
            value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        )
        tensor.name = name
        holder = self._holder(name)
        (self.proto.graph.initializer.add() if holder is None else holder).CopyFrom(tensor)

    def insert_before(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        nodes = list(self.proto.graph.node)
        at = next(i for i, other in enumerate(nodes) if other.output == node.output)
        self._replace([*nodes[:at], *new, *nodes[at:]])

    def behind(self, name: str, op_type: str, *extra: str, reader: onnx.NodeProto, **attributes: Any) -> str:
        """Put an operator between tensor ``name`` and one reader of it; the new tensor's name."""
        made = f"{name}_{op_type}"
        node = helper.make_node(op_type, [name, *extra], [made], name=f"inserted_{op_type}", **attributes)
        self.insert_before(reader, node)
        live = next(n for n in self.proto.graph.node if n.output == reader.output)
        live.input[list(live.input).index(name)] = made
        return made

    def _holder(self, name: str) -> onnx.TensorProto | None:
        for tensor in self.proto.graph.initializer:
            if tensor.name == name:
                return tensor
        for node in self.nodes("Constant"):
            if node.output[0] == name:
                return node.attribute[0].t
        return None

    def _replace(self, nodes: list[onnx.NodeProto]) -> None:
        """Nodes are copied by protobuf: the sites must point at the copies."""
        kept = []
        for node in nodes:
            kept.append(onnx.NodeProto())
            kept[-1].CopyFrom(node)
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(kept)
        by_output = {node.output[0]: node for node in self.proto.graph.node}
        for site in self.sites:
            site.dq = by_output[site.dq.output[0]]
            site.q = None if site.q is None else by_output[site.q.output[0]]


@dataclass
class Maker:
    """Collects nodes; every method adds one block and gives what comes out of it."""

    seed: int
    rng: np.random.Generator = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.opset = int(self.rng.choice(OPSETS))
        self.half = bool(self.opset >= 19 and self.rng.random() < 0.4)
        self.half_scales = self.half and (self.opset < 23 or self.rng.random() < 0.3)
        self.float = np.dtype(np.float16 if self.half else np.float32)
        self.constant_nodes = bool(self.rng.random() < 0.3)

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def op(self, op_type: str, inputs: list[str], outputs: int = 1, **attributes: Any) -> str:
        self.count += 1
        names = [
            f"{op_type.lower()}_{self.count}_{i}" if i else f"{op_type.lower()}_{self.count}"
            for i in range(outputs)
        ]
        self.nodes.append(
            helper.make_node(op_type, inputs, names, name=f"n{self.count}_{op_type}", **attributes)
        )
        return names[0]

    def constant(self, value: np.ndarray, hint: str) -> str:
        self.count += 1
        name = f"{hint}_{self.count}"
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if self.constant_nodes and tensor.ByteSize() < 100:
            self.nodes.append(helper.make_node("Constant", [], [name], name=f"make_{name}", value=tensor))
        else:
            self.constants.append(tensor)
        return name

    # Q/DQ

    def _parameters(self, channels: int, scale: float | None = None) -> list[str]:
        """Names of a positive scale and a zero point of 0, one or ``channels`` of them."""
        kind = np.float16 if self.half_scales else np.float32
        drawn = self.rng.uniform(0.005, 0.05, channels or ()) if scale is None else scale
        return [
            self.constant(np.asarray(drawn, kind), "scale"),
            self.constant(np.zeros(channels or (), np.int8), "zero"),
        ]

    def _to_float(self) -> dict[str, Any]:
        wanted = self.half and not self.half_scales
        return {"output_dtype": TensorProto.FLOAT16} if wanted else {}

    def pair(self, name: str, scale: float | None = None) -> str:
        """Q/DQ on a data tensor, one scale."""
        parameters = self._parameters(0, scale)
        integers = self.op("QuantizeLinear", [name, *parameters])
        quantizer = self.nodes[-1]
        back = self.op("DequantizeLinear", [integers, *parameters], **self._to_float())
        self.sites.append(Site("data", quantizer, self.nodes[-1]))
        return back

    def weight(self, shape: tuple[int, ...], reader: str, axis: int, *, channelwise: bool = False) -> str:
        """Weights behind DQ, or behind Q/DQ; per channel or, where allowed, per tensor."""
        channels = shape[axis] if channelwise or self.chance(0.8) else 0
        written = axis - len(shape) if self.chance(0.3) else axis
        attributes: dict[str, Any] = {"axis": written} if channels else {}
        parameters = self._parameters(channels)
        quantizer = None
        if self.chance(0.3):
            source = self.constant(self.rng.normal(0, 0.3, shape).astype(self.float), "weight")
            integers = self.op("QuantizeLinear", [source, *parameters], **attributes)
            quantizer = self.nodes[-1]
        else:
            integers = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8), "weight")
        back = self.op("DequantizeLinear", [integers, *parameters], **attributes, **self._to_float())
        self.sites.append(Site("weight", quantizer, self.nodes[-1], reader))
        return back

    # Blocks

    def conv(
        self, x: Value, channels: int = 0, *, kernel: int = 3, quantized: bool = True, act: str = "any"
    ) -> Value:
        channels = channels or int(self.rng.choice([8, 16, 24]))
        stride = 2 if x.size >= 8 and self.chance(0.25) else 1
        shape = (channels, x.channels, kernel, kernel)
        data = self.pair(x.name) if quantized else x.name
        weight = self.weight(shape, "Conv", 0) if quantized else self._float_weight(shape)
        inputs = [data, weight]
        if self.chance(0.7):
            inputs.append(self.constant(self.rng.normal(0, 1, channels).astype(self.float), "bias"))
        pad = kernel // 2
        out = self.op("Conv", inputs, kernel_shape=[kernel] * 2, pads=[pad] * 4, strides=[stride] * 2)
        size = (x.size - 1) // stride + 1
        return Value(self._activated(out, act), channels, size)

    def depthwise(self, x: Value) -> Value:
        weight = self.weight((x.channels, 1, 3, 3), "Conv", 0, channelwise=True)
        out = self.op("Conv", [self.pair(x.name), weight], group=x.channels, pads=[1] * 4)
        return Value(self._activated(out, "any"), x.channels, x.size)

    def deconv(self, x: Value) -> Value:
        if x.size > SIDE_PX:
            return self.conv(x)
        weight = self.weight((x.channels, 8, 2, 2), "ConvTranspose", 1)
        out = self.op("ConvTranspose", [self.pair(x.name), weight], strides=[2, 2], kernel_shape=[2, 2])
        return Value(out, 8, x.size * 2)

    def residual(self, x: Value) -> Value:
        """The identity branch quantized, the convolution's branch left float."""
        inner = self.conv(
            Value(x.name, x.channels, 4), x.channels, act="none"
        )  # size 4 keeps the stride at 1
        identity = self.pair(x.name) if self.chance(0.6) else x.name
        return Value(self._activated(self.op("Add", [inner.name, identity]), "any"), x.channels, x.size)

    def concat(self, x: Value) -> Value:
        """Two branches with one scale, or float ones."""
        branches = [self.conv(Value(x.name, x.channels, 4), act="Relu") for _ in range(2)]
        names = [branch.name for branch in branches]
        if self.chance(0.5):
            names = [self.pair(name, scale=0.03125) for name in names]
        return Value(self.op("Concat", names, axis=1), sum(b.channels for b in branches), x.size)

    def pad(self, x: Value) -> Value:
        """Pad right before its convolution, quantized before the Pad or not at all."""
        pads = self.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
        source = self.pair(x.name) if self.chance(0.5) else x.name
        padded = self.op("Pad", [source, pads])
        out = self.op("Conv", [padded, self._float_weight((8, x.channels, 3, 3))], kernel_shape=[3, 3])
        return Value(out, 8, x.size)

    def pool(self, x: Value) -> Value:
        """MaxPool, now and then between Q and DQ: it only moves integers."""
        if x.size < 4:
            return x
        if self.chance(0.3):
            parameters = self._parameters(0)
            integers = self.op("QuantizeLinear", [x.name, *parameters])
            pooled = self.op("MaxPool", [integers], kernel_shape=[2, 2], strides=[2, 2])
            out = self.op("DequantizeLinear", [pooled, *parameters], **self._to_float())
        else:
            out = self.op("MaxPool", [x.name], kernel_shape=[2, 2], strides=[2, 2])
        return Value(out, x.channels, x.size // 2)

    def upsample(self, x: Value) -> Value:
        if x.size > SIDE_PX:
            return x
        scales = self.constant(np.array([1, 1, 2, 2], np.float32), "sizes")
        return Value(self.op("Resize", [x.name, "", scales], mode="nearest"), x.channels, x.size * 2)

    def gate(self, x: Value) -> Value:
        """Squeeze and excite: one Q fanned out to both users."""
        shared = self.pair(x.name)
        mean = self.op("GlobalAveragePool", [shared])
        weight = self.weight((x.channels, x.channels, 1, 1), "Conv", 0)
        gate = self.op("Sigmoid", [self.op("Conv", [self.pair(mean), weight])])
        return Value(self.op("Mul", [shared, gate]), x.channels, x.size)

    def linear(self, x: Value) -> str:
        """GlobalAveragePool, Flatten and a Gemm or MatMul: [1, 10]."""
        flat = self.op("Flatten", [self.op("GlobalAveragePool", [x.name])])
        data = self.pair(flat)
        if self.chance(0.5):
            turned = self.chance(0.5)
            shape = (10, x.channels) if turned else (x.channels, 10)
            weight = self.weight(shape, "Gemm", 0 if turned else 1)
            return self.op("Gemm", [data, weight], transB=int(turned))
        return self.op("MatMul", [data, self.weight((x.channels, 10), "MatMul", 1)])

    def head(self, x: Value) -> str:
        """Boxes and scores, float from the last convolutions on: [1, 6, size * size]."""
        quantized = self.chance(0.5)
        branch = Value(x.name, x.channels, 4)
        boxes = self.conv(branch, 4, kernel=1, quantized=quantized, act="none")
        scores = self.conv(branch, 2, kernel=1, quantized=quantized, act="none")
        joined = self.op("Concat", [boxes.name, self.op("Sigmoid", [scores.name])], axis=1)
        shape = self.constant(np.array([0, 6, -1], np.int64), "shape")
        return self.op("Reshape", [joined, shape])

    def _float_weight(self, shape: tuple[int, ...]) -> str:
        return self.constant(self.rng.normal(0, 0.3, shape).astype(self.float), "weight")

    def _activated(self, name: str, act: str) -> str:
        kind = str(self.rng.choice(["Relu", "SiLU", "LeakyRelu", "none"])) if act == "any" else act
        if kind == "SiLU":
            return self.op("Mul", [name, self.op("Sigmoid", [name])])
        return name if kind == "none" else self.op(kind, [name])

    def made(self, outputs: list[str]) -> Made:
        """The model; the input and the outputs stay float32."""
        names = [f"out{i}" for i in range(len(outputs))]
        for name, source in zip(names, outputs, strict=True):
            kind = "Cast" if self.half else "Identity"
            attributes: dict[str, Any] = {"to": TensorProto.FLOAT} if self.half else {}
            self.nodes.append(helper.make_node(kind, [source], [name], name=f"end_{name}", **attributes))
        graph = helper.make_graph(
            self.nodes,
            f"seed{self.seed}",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])],
            [
                helper.make_tensor_value_info(
                    name, TensorProto.FLOAT, [1, 6, None] if "reshape" in source else [1, 10]
                )
                for name, source in zip(names, outputs, strict=True)
            ],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        if any(node.domain for node in self.nodes):
            model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return _rebound(model, self)


def _rebound(model: onnx.ModelProto, maker: Maker) -> Made:
    """make_graph copies nodes: point the sites at the copies."""
    made = Made(model, maker.sites, maker.opset, maker.half)
    made._replace(list(model.graph.node))
    return made


_BLOCKS = ("conv", "depthwise", "deconv", "residual", "concat", "pad", "pool", "upsample", "gate")


def make(seed: int) -> Made:
    """A random legal network of two to six blocks and a head."""
    maker = Maker(seed)
    start = "image"
    if maker.half:
        start = maker.op("Cast", ["image"], to=TensorProto.FLOAT16)
    x = maker.conv(Value(start, 3, SIDE_PX), 8)
    for block in maker.rng.choice(_BLOCKS, int(maker.rng.integers(2, 7))):
        x = getattr(maker, str(block))(x)
    outputs = [maker.head(x)] if maker.chance(0.8) else [maker.linear(x)]
    if maker.chance(0.2):
        outputs.append(maker.linear(x))
    return maker.made(outputs)
