"""Rules on the placement of Q/DQ that is valid but costs speed or accuracy."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import NodeProto, TensorProto

from avq.builder.graph.edit import int_attribute
from avq.builder.lint.graph import MOVES, LintGraph, grid_type
from avq.builder.lint.rule import ALL, CPU, TRT, Hit, error, warning

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_GATES = ("Sigmoid", "HardSigmoid")
_BOUNDED = (*_GATES, "Softmax")
_ACTIVATIONS = ("Relu", "LeakyRelu", "Clip", "PRelu")
_AXIS_FIX = "use axis 0 for Conv, 1 for ConvTranspose, the output axis for Gemm"


@warning(
    15,
    TRT,
    "the inputs of a Concat have different scales: each is requantized",
    "give its inputs one scale, as a plan does with ties",
)
def _untied_concat(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type("Concat"):
        distinct = _input_scales(graph, node)
        if len(distinct) > 1:
            yield node, ", ".join(f"{scale:g}" for scale in sorted(distinct))


@warning(
    16,
    ALL,
    "a graph output is quantized: boxes and scores lose their precision",
    "keep the last convolutions and everything after them in float",
)
def _quantized_output(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        if node.output[0] in graph.outputs and graph.on_activation(node):
            yield node, f"output {node.output[0]}"


@warning(
    17,
    TRT,
    "Q/DQ between a convolution and its activation prevents their fusion",
    "quantize the input of the next convolution instead",
)
def _split_relu(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type(*_ACTIVATIONS):
        source = graph.producers.get(graph.unpaired(node.input[0]))
        if source is not None and source.op_type in _WEIGHTED and node.input[0] not in source.output:
            yield node, f"after {source.name}"


@warning(18, CPU, "weights have scales along an axis that is not the output channel", _AXIS_FIX)
def _weight_axis(graph: LintGraph) -> Iterator[Hit]:
    yield from _off_axis(graph)


@error(
    31,
    TRT,
    "weights have scales along an axis that the product sums over: no integer kernel applies them",
    _AXIS_FIX,
)
def _summed_axis(graph: LintGraph) -> Iterator[Hit]:
    for node, seen in _off_axis(graph):
        dequantizer = graph.dequantizer_of(node, 1)
        if dequantizer is None or grid_type(graph, dequantizer) != TensorProto.INT4:
            yield node, seen  # 4-bit weights are scaled before they are multiplied, in float


@warning(
    19,
    ALL,
    "a depthwise convolution has one weight scale for channels of very different range",
    "give its weights one scale per channel, or keep it in float",
)
def _depthwise_per_tensor(graph: LintGraph) -> Iterator[Hit]:
    for node in (n for n in graph.of_type("Conv") if int_attribute(n, "group", 1) > 1):
        dequantizer = graph.dequantizer_of(node, 1)
        scale = None if dequantizer is None else graph.value(dequantizer, 1)
        if dequantizer is not None and scale is not None and scale.size == 1:
            yield node, f"{int_attribute(node, 'group', 1)} groups, one scale"


@warning(
    32,
    TRT,
    "Q/DQ between Pad and Conv prevents their fusion",
    "quantize the input of Pad instead, or pad in the convolution",
)
def _padded(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type("Conv", "ConvTranspose"):
        source = graph.producers.get(graph.unpaired(node.input[0]))
        if source is not None and source.op_type == "Pad" and node.input[0] not in source.output:
            yield node, f"after {source.name or source.op_type}"


@warning(
    33,
    TRT,
    "the Sigmoid of a SiLU is quantized: Conv, Sigmoid and Mul are not fused",
    "quantize after the Mul, at the input of the next convolution",
)
def _split_silu(graph: LintGraph) -> Iterator[Hit]:
    for node in (n for n in graph.of_type("Mul") if len(n.input) == 2):
        for gate, other in (node.input, reversed(node.input)):
            sigmoid = graph.producers.get(graph.unpaired(gate))
            if sigmoid is None or sigmoid.op_type not in _GATES:
                continue
            same = graph.unpaired(sigmoid.input[0]) == graph.unpaired(other)
            if same and (gate not in sigmoid.output or sigmoid.input[0] != other):
                yield node, f"gate {sigmoid.name or sigmoid.op_type}"


@warning(
    34,
    ALL,
    "scores between 0 and 1 share one scale with other values, such as boxes: scores lose their precision",
    "keep the Concat of the head in float, or quantize its inputs with separate scales",
)
def _mixed_ranges(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.of_type("Concat"):
        if not _on_one_scale(graph, node):
            continue
        sources = [_producer_before_moves(graph, name) for name in node.input if not graph.is_constant(name)]
        scores = sorted({s.name or s.op_type for s in sources if s is not None and s.op_type in _BOUNDED})
        if scores and any(s is None or s.op_type not in _BOUNDED for s in sources):
            yield node, f"scores of {', '.join(scores)}"


@warning(
    35,
    TRT,
    "both inputs of a residual Add are quantized: it is not fused with the convolution before it",
    "quantize only the branch without the convolution",
)
def _doubled_residual(graph: LintGraph) -> Iterator[Hit]:
    for node in (n for n in graph.of_type("Add") if len(n.input) == 2):
        floats = [graph.unpaired(name) for name in node.input]
        if any(name == given for name, given in zip(floats, node.input, strict=True)):
            continue
        behind = [graph.producers.get(name) for name in floats]
        convolved = [n.name or n.op_type for n in behind if n is not None and n.op_type in _WEIGHTED]
        if convolved:
            yield node, f"after {', '.join(convolved)}"


def _off_axis(graph: LintGraph) -> Iterator[tuple[NodeProto, str]]:
    for node in graph.of_type(*_WEIGHTED):
        dequantizer = graph.dequantizer_of(node, 1)
        if dequantizer is None or graph.on_activation(dequantizer):
            continue
        scale, shape = graph.value(dequantizer, 1), graph.shape(dequantizer.input[0])
        if scale is None or scale.ndim != 1 or scale.size < 2 or not shape:
            continue
        axis = int_attribute(dequantizer, "axis", 1)
        if axis % len(shape) != _channel_axis(node, len(shape)) and -len(shape) <= axis < len(shape):
            yield node, f"axis {axis}"


def _channel_axis(node: NodeProto, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if int_attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _input_scales(graph: LintGraph, node: NodeProto) -> set[float]:
    feeding = [graph.dequantizer_of(node, index) for index in range(len(node.input))]
    scales = [graph.value(dq, 1) for dq in feeding if dq is not None]
    return {float(scale.flat[0]) for scale in scales if scale is not None and scale.size == 1}


def _on_one_scale(graph: LintGraph, concat: NodeProto) -> bool:
    """Whether the Concat's result is quantized, or all of its inputs are, with one scale."""
    if any(reader.op_type == "QuantizeLinear" for reader in graph.readers.get(concat.output[0], [])):
        return True
    joined = all(graph.dequantizer_of(concat, index) is not None for index in range(len(concat.input)))
    return joined and len(_input_scales(graph, concat)) == 1


def _producer_before_moves(graph: LintGraph, name: str) -> NodeProto | None:
    """Producer of the values, in front of operators in `MOVES` and Q/DQ pairs; None for an input."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        node = graph.producers.get(graph.unpaired(name))
        if node is None or node.op_type == "Concat" or node.op_type not in MOVES:
            return node
        name = node.input[0]
    return None
