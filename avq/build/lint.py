"""What a runtime would reject in a quantized model or, worse, silently misread.

The rules for TensorRT and TensorRT-RTX are those of its ``IQuantizeLayer`` documentation and of the ONNX parser
(onnx-tensorrt ``docs/operators.md``); several were found by feeding the parser such files. A float model
has nothing to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import numpy_helper

from avq.errors import RequestError, nearest
from avq.types import TARGETS, AnyArray, Finding

_TRT = ("tensorrt", "tensorrt-rtx")
_CPU = ("cpu", "onnxruntime", "openvino")
_ALL = TARGETS
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INTEGER_OPS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
_LABEL = {"QuantizeLinear": "Q", "DequantizeLinear": "DQ"}


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding, with the keys ``avq lint --json`` prints."""

    id: str
    severity: str  # "error" | "warning"
    node: str
    what: str
    seen: str
    fix: str

    def as_finding(self) -> Finding:
        """The same for a gate: any "error" rejects a bundle."""
        return Finding(self.severity, self.id, f"{self.node}: {self.what}", self.seen, self.fix)


#: What a rule yields: the node, and what was seen there.
Hit = tuple[onnx.NodeProto, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the table: what it says of a node, for which targets, and what to do."""

    id: str
    severity: str
    targets: tuple[str, ...]
    what: str
    fix: str
    find: Callable[[_Graph], Iterator[Hit]]


RULES: list[Rule] = []


def lint(proto: onnx.ModelProto, target: str) -> tuple[LintFinding, ...]:
    """Everything ``target`` would reject or misread in ``proto``, in order of the rules.

    Raises RequestError for an unknown target.
    """
    if target not in TARGETS:
        raise RequestError(f"there is no target '{target}'", fix=nearest(target, TARGETS))
    graph = _Graph(proto)
    return tuple(
        LintFinding(rule.id, rule.severity, node.name or node.output[0], rule.what, seen, rule.fix)
        for rule in RULES
        if target in rule.targets
        for node, seen in rule.find(graph)
    )


def _rule(
    number: int, severity: str, targets: tuple[str, ...], what: str, fix: str
) -> Callable[[Callable[[_Graph], Iterator[Hit]]], Callable[[_Graph], Iterator[Hit]]]:
    def add(find: Callable[[_Graph], Iterator[Hit]]) -> Callable[[_Graph], Iterator[Hit]]:
        RULES.append(Rule(f"AVQ-L{number:02d}", severity, targets, what, fix, find))
        return find

    return add


class _Graph:
    """What the rules ask of a model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = list(proto.graph.node)
        self.outputs = {value.name for value in proto.graph.output}
        self.opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in self.nodes:
            for value in (a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"):
                self._constants[node.output[0]] = value

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, list[onnx.NodeProto]]:
        table: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                table.setdefault(name, []).append(node)
        return table

    @cached_property
    def linears(self) -> list[onnx.NodeProto]:
        """Every QuantizeLinear and DequantizeLinear."""
        return [node for node in self.nodes if node.op_type in _LABEL]

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.linears if node.op_type == "QuantizeLinear")

    def dequantizers(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.linears if node.op_type == "DequantizeLinear")

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def value(self, node: onnx.NodeProto, index: int) -> AnyArray | None:
        """The constant at an input, or None."""
        name = node.input[index] if index < len(node.input) else ""
        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def on_activation(self, node: onnx.NodeProto) -> bool:
        """True when the quantized value is not a constant."""
        source = node.input[0]
        if node.op_type == "DequantizeLinear" and source in self.producers:
            before = self.producers[source]
            source = before.input[0] if before.op_type == "QuantizeLinear" else source
        return not self.is_constant(source)

    def dequantizer_of(self, node: onnx.NodeProto, index: int) -> onnx.NodeProto | None:
        """The DQ that feeds an input of ``node``, or None."""
        found = self.producers.get(node.input[index]) if index < len(node.input) else None
        return found if found is not None and found.op_type == "DequantizeLinear" else None


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


@_rule(
    1,
    "error",
    _TRT,
    "unsigned bytes are read as signed ones: values above 127 are clipped",
    "lower with encoding s8: avq build --target tensorrt",
)
def _unsigned(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        zero_point = graph.value(node, 2)
        if zero_point is not None and zero_point.dtype in (np.uint8, np.uint16):
            yield node, f"zero point is {zero_point.dtype}"


@_rule(
    2, "error", _TRT, "the zero point is not 0", "plan with symmetric grids: --option activations=symmetric"
)
def _shifted(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        zero_point = graph.value(node, 2)
        if zero_point is not None and np.any(zero_point.astype(np.int64) != 0):
            yield node, f"zero point {int(np.ravel(zero_point)[0])}"


@_rule(3, "error", _TRT, "a bias in 32-bit integers cannot be read", "keep biases in float")
def _integer_bias(graph: _Graph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        value = graph.value(node, 0)
        if value is not None and value.dtype == np.int32:
            yield node, f"{node.input[0]} is int32"


@_rule(
    4,
    "error",
    _ALL,
    "a scale is not a positive normal number",
    "clamp the scales of dead channels to a small positive number",
)
def _bad_scale(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if scale is None or not np.issubdtype(scale.dtype, np.floating):
            continue
        smallest = np.finfo(scale.dtype).tiny
        bad = ~(np.isfinite(scale) & (scale >= smallest))
        if np.any(bad):
            yield node, f"{int(bad.sum())} of {scale.size} scales, first {float(scale[bad].flat[0]):g}"


@_rule(5, "error", _TRT, "an activation has a scale per channel", "one scale per tensor for activations")
def _activation_channels(graph: _Graph) -> Iterator[Hit]:
    for node in graph.quantizers():
        scale = graph.value(node, 1)
        if scale is not None and scale.size > 1 and graph.on_activation(node):
            yield node, f"{scale.size} scales"


@_rule(6, "error", _ALL, "scales per channel need opset 13", "convert the model to opset 17 or newer")
def _old_channels(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if graph.opset < 13 and scale is not None and scale.size > 1:
            yield node, f"opset {graph.opset}"


@_rule(
    7, "error", _TRT, "integers are used without DequantizeLinear", "put a DequantizeLinear behind every Q"
)
def _lonely_q(graph: _Graph) -> Iterator[Hit]:
    for node in graph.quantizers():
        others = [r.op_type for r in graph.readers.get(node.output[0], []) if r.op_type != "DequantizeLinear"]
        if others or node.output[0] in graph.outputs:
            yield node, f"read by {', '.join(sorted(set(others))) or 'the graph output'}"


@_rule(
    8,
    "error",
    _TRT,
    "DequantizeLinear reads neither a QuantizeLinear nor a constant",
    "put QuantizeLinear right in front of it; clip in float before that",
)
def _lonely_dq(graph: _Graph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        before = graph.producers.get(node.input[0])
        quantized = before is not None and before.op_type == "QuantizeLinear"
        if not quantized and not graph.is_constant(node.input[0]):
            yield node, f"fed by {before.op_type if before is not None else 'a graph input'}"


@_rule(9, "error", _TRT, "scale or zero point is computed, not constant", "fold constants before exporting")
def _computed_scale(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        names = [name for name in node.input[1:] if name and not graph.is_constant(name)]
        if names:
            yield node, ", ".join(names)


@_rule(10, "error", _TRT, "integer operators cannot be read, only Q/DQ pairs", "export with Q/DQ pairs")
def _integer_ops(graph: _Graph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPS or (node.domain == "com.microsoft" and node.op_type in _LABEL):
            yield node, f"{node.domain}:{node.op_type}".lstrip(":")


@_rule(
    11,
    "warning",
    _TRT,
    "without a zero point ONNX means unsigned bytes and TensorRT reads signed ones",
    "write an int8 zero point of 0",
)
def _no_zero_point(graph: _Graph) -> Iterator[Hit]:
    for node in graph.quantizers():
        if len(node.input) < 3 or not node.input[2]:
            yield node, "two inputs"


@_rule(
    12,
    "warning",
    _CPU,
    "signed activations are slow in onnxruntime on x86 and were measured wrong in OpenVINO",
    "lower with encoding u8: the same numbers, stored unsigned",
)
def _signed_on_cpu(graph: _Graph) -> Iterator[Hit]:
    for node in graph.quantizers():
        zero_point = graph.value(node, 2)
        if zero_point is not None and zero_point.dtype == np.int8 and graph.on_activation(node):
            yield node, "zero point is int8"
            return  # one line says it for the whole file


@_rule(13, "error", _ALL, "half-precision scales need opset 19", "keep scales in float32, or raise the opset")
def _half_scales(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        scale = graph.value(node, 1)
        if graph.opset < 19 and scale is not None and scale.dtype == np.float16:
            yield node, f"opset {graph.opset}"


@_rule(14, "error", _ALL, "4- and 16-bit integers need opset 21", "raise the opset to 21")
def _wide_integers(graph: _Graph) -> Iterator[Hit]:
    for node in graph.linears:
        zero_point = graph.value(node, 2)
        kind = "" if zero_point is None else str(zero_point.dtype)
        if graph.opset < 21 and kind in ("int16", "uint16", "int4", "uint4"):
            yield node, f"{kind} at opset {graph.opset}"


@_rule(
    15,
    "warning",
    _TRT,
    "the inputs of a Concat have different scales: each is requantized",
    "tie their scales: the plan's ties",
)
def _untied_concat(graph: _Graph) -> Iterator[Hit]:
    for node in (n for n in graph.nodes if n.op_type == "Concat"):
        feeding = [graph.dequantizer_of(node, i) for i in range(len(node.input))]
        scales = [graph.value(dq, 1) for dq in feeding if dq is not None]
        distinct = {float(s.flat[0]) for s in scales if s is not None and s.size == 1}
        if len(distinct) > 1:
            yield node, ", ".join(f"{scale:g}" for scale in sorted(distinct))


@_rule(
    16,
    "warning",
    _ALL,
    "a graph output is quantized: boxes and scores on one grid collapse",
    "leave the last convolutions and all after them in float",
)
def _quantized_output(graph: _Graph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        if node.output[0] in graph.outputs and graph.on_activation(node):
            yield node, f"output {node.output[0]}"


@_rule(
    17,
    "warning",
    _TRT,
    "Q/DQ between a convolution and its ReLU keeps them from being one kernel",
    "quantize the input of the next convolution instead",
)
def _split_relu(graph: _Graph) -> Iterator[Hit]:
    for node in (n for n in graph.nodes if n.op_type == "Relu"):
        dequantizer = graph.dequantizer_of(node, 0)
        quantizer = graph.producers.get(dequantizer.input[0]) if dequantizer is not None else None
        source = graph.producers.get(quantizer.input[0]) if quantizer is not None else None
        if source is not None and source.op_type in ("Conv", "ConvTranspose"):
            yield node, f"behind {source.name}"


@_rule(
    18,
    "warning",
    _ALL,
    "weights have scales along an axis that is not the output channel",
    "use axis 0 for Conv, 1 for ConvTranspose, the output axis for Gemm",
)
def _weight_axis(graph: _Graph) -> Iterator[Hit]:
    for node in (n for n in graph.nodes if n.op_type in _WEIGHTED):
        dequantizer = graph.dequantizer_of(node, 1)
        if dequantizer is None or graph.on_activation(dequantizer):
            continue
        scale = graph.value(dequantizer, 1)
        axis, wanted = _attribute(dequantizer, "axis", 1), _channel_axis(node)
        if scale is not None and scale.ndim == 1 and scale.size > 1 and axis not in wanted:
            yield node, f"axis {axis}"


def _channel_axis(node: onnx.NodeProto) -> tuple[int, ...]:
    if node.op_type == "Gemm":
        return (0, -2) if _attribute(node, "transB", 0) else (1, -1)
    return {"Conv": (0,), "ConvTranspose": (1,)}.get(node.op_type, (1, -1))


@_rule(
    19,
    "warning",
    _ALL,
    "a depthwise convolution has one weight scale for channels of very different size",
    "give its weights one scale per channel, or keep it in float",
)
def _depthwise_per_tensor(graph: _Graph) -> Iterator[Hit]:
    for node in (n for n in graph.nodes if n.op_type == "Conv" and _attribute(n, "group", 1) > 1):
        dequantizer = graph.dequantizer_of(node, 1)
        scale = None if dequantizer is None else graph.value(dequantizer, 1)
        if dequantizer is not None and scale is not None and scale.size == 1:
            yield node, f"{_attribute(node, 'group', 1)} groups, one scale"


@_rule(
    20,
    "error",
    _ALL,
    "a quantizer of a training dialect is no operator any runtime knows",
    "import it: avq build --strategy qat",
)
def _training_dialect(graph: _Graph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.domain and node.op_type in ("Quant", "BipolarQuant", "Trunc", "FakeQuantize"):
            yield node, f"{node.domain}:{node.op_type}"
