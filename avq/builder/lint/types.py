"""Rules on operators, element types, INT4 and GPU architectures that TensorRT does not support.

The list of operators is that of ``OnnxParser.supports_operator`` in TensorRT for RTX 1.7; a test compares them.
A newer parser may support more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from avq.builder.graph.edit import int_attribute, ints_attribute
from avq.builder.lint.graph import LABEL, LintGraph, grid_type, type_name
from avq.builder.lint.kernels import _INTEGER_OPS, _TRAINING
from avq.builder.lint.rule import TRT, Hit, error, warning

_UNREAD = """AffineGrid Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im
    Compress ConcatFromSequence ConvInteger CumProd DFT DeformConv Det DynamicQuantizeLinear ImageDecoder
    MatMulInteger MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional
    OptionalGetElement OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct
    SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence
    StringConcat StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique"""
#: Operators of ONNX that the parser has no importer for.
UNSUPPORTED = frozenset(_UNREAD.split())
#: Imported as plugins, which TensorRT contains and TensorRT for RTX does not.
_PLUGINS = frozenset({"NonZero"})
#: onnxruntime's own operators that the parser reads, by their name.
_BY_NAME = frozenset({"Gelu", "SimplifiedLayerNormalization", *LABEL})
_HELD = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8}
    | {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.INT4, TensorProto.FLOAT8E4M3FN}
    | {TensorProto.UNDEFINED}
)


@error(43, TRT, "the parser does not support this operator", "export without it, or end the model before it")
def _no_importer(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type in _INTEGER_OPS or node.op_type in _TRAINING:
            continue  # AVQ-L10 and AVQ-L20
        seen = _why_not_read(graph, node)
        if seen:
            yield node, seen


@error(44, TRT, "TensorRT does not support this element type", "cast to float32, int32 or int8 before")
def _element_types(graph: LintGraph) -> Iterator[Hit]:
    for name, kind in sorted(_types(graph).items()):
        if kind in _HELD or (kind == TensorProto.UINT8 and _bytes_at_a_port(graph, name)):
            continue
        yield name, type_name(kind)


@error(45, TRT, "the parser does not support this mode of the operator", "export the model for inference")
def _modes(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.nodes:
        seen = _mode(graph, node)
        if seen:
            yield node, seen


@warning(
    46,
    TRT,
    "the input has no fixed size: an engine needs one size or a range",
    'avq build fixes it: --preprocess size.json with {"width_px": 640, "height_px": 640}',
)
def _open_sizes(graph: LintGraph) -> Iterator[Hit]:
    for value in graph.proto.graph.input:
        sizes = [d.dim_param or "?" for d in value.type.tensor_type.shape.dim if not d.HasField("dim_value")]
        if sizes and not graph.is_constant(value.name):
            yield value.name, ", ".join(sizes)


def _why_not_read(graph: LintGraph, node: NodeProto) -> str:
    if node.domain not in ("", "ai.onnx"):
        shipped = graph.target == "tensorrt" and node.op_type.endswith("_TRT")
        known = node.domain == "com.microsoft" and node.op_type in _BY_NAME
        return "" if shipped or known else f"{node.domain}:{node.op_type}"
    unknown = not onnx.defs.has(node.op_type) and not node.op_type.endswith("_TRT")
    lost = node.op_type in _PLUGINS and graph.target == "tensorrt-rtx"
    return node.op_type if node.op_type in UNSUPPORTED or unknown or lost else ""


def _types(graph: LintGraph) -> dict[str, int]:
    return {**graph.inferred.types, **{name: tensor.data_type for name, tensor in graph.constants.items()}}


def _bytes_at_a_port(graph: LintGraph, name: str) -> bool:
    """Whether uint8 enters or leaves the model through a Cast; constants become 32-bit integers."""
    linears = [r for r in graph.readers.get(name, []) if r.op_type in LABEL]
    if linears and any(r.input[0] != name for r in linears):
        return True  # a zero point: AVQ-L01
    cast_in = name in graph.inputs or graph.is_constant(name)
    readers = graph.readers.get(name, [])
    if cast_in:
        return all(reader.op_type == "Cast" for reader in readers)
    producer = graph.producers.get(name)
    quantized = producer is not None and producer.op_type == "QuantizeLinear"
    return quantized or (
        name in graph.outputs and not readers and producer is not None and producer.op_type == "Cast"
    )


def _mode(graph: LintGraph, node: NodeProto) -> str:
    if node.op_type == "MaxPool":
        if len(node.output) > 1 and node.output[1]:
            return "indices of the maxima"
        uneven = [d for d in ints_attribute(node, "dilations") if d != 1]
        return f"dilations {uneven}" if uneven else ""
    if node.op_type == "Dropout":
        training = graph.value(node, 2)
        return "training" if training is not None and bool(training.any()) else ""
    if node.op_type == "BatchNormalization" and int_attribute(node, "training_mode", 0):
        return "training"
    return ""


# INT4, for which TensorRT's builder has fewer types and kernels than for INT8.

#: Operators that INT4 tensors may pass between Q and DQ.
_RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Transpose"})


@error(
    47,
    TRT,
    "scales and result of an INT4 tensor differ in float type: the builder infers the type from the scales",
    "write scales in the type of the result, without output_dtype: float16 where the reader runs in float16",
)
def _int4_scale_type(graph: LintGraph) -> Iterator[Hit]:
    for node in _int4(graph, graph.dequantizers()):
        scale = graph.element(node.input[1])
        result = int_attribute(node, "output_dtype", 0) or scale
        if scale and result != scale:
            yield node, f"scales {type_name(scale)}, result {type_name(result)}"


@error(
    48,
    TRT,
    "an INT4 tensor has an odd number of elements: the builder stores pairs",
    "use 8 bits for this tensor",
)
def _odd_int4(graph: LintGraph) -> Iterator[Hit]:
    for node in _int4(graph, graph.linears):
        shape = graph.shape(node.input[0])
        if shape is not None and None not in shape and math.prod(d or 0 for d in shape) % 2:
            yield node, f"{list(shape)}"


@error(
    51,
    TRT,
    "integers are read without DequantizeLinear, or pass an operator that moves floats only",
    "put DequantizeLinear directly after constants; move and cast floats",
)
def _used_integers(graph: LintGraph) -> Iterator[Hit]:
    for name, readers in graph.readers.items():
        kind = graph.element(name)
        if graph.is_constant(name) and kind in (TensorProto.INT8, TensorProto.INT4):
            wrong = [r for r in readers if r.op_type not in LABEL]
        elif kind == TensorProto.INT4:
            wrong = [r for r in readers if r.op_type not in LABEL and r.op_type not in _RESHAPING]
        else:
            continue
        for reader in wrong:
            yield reader, f"reads {name}, {type_name(kind)}"


@warning(
    52,
    TRT,
    "an INT4 activation: no kernel multiplies it, and TensorRT 10 supports INT4 weights only",
    "use 8 bits for activations",
)
def _int4_activation(graph: LintGraph) -> Iterator[Hit]:
    for node in _int4(graph, graph.quantizers()):
        if graph.on_activation(node):
            yield node, node.input[0]


def _int4(graph: LintGraph, nodes: Iterator[NodeProto] | list[NodeProto]) -> Iterator[NodeProto]:
    return (node for node in nodes if grid_type(graph, node) == TensorProto.INT4)


# GPU architectures: checked only for those given with --gpu-arch.

_RTX = ("tensorrt-rtx",)
#: Architecture -> element types whose use anywhere makes the builder refuse the model.
_NO_TYPES = {"sm75": (TensorProto.BFLOAT16, TensorProto.INT4)}
#: Architecture -> element types without matrix products.
_NO_PRODUCTS = {"sm75": (TensorProto.FLOAT,)}
_PRODUCTS = ("MatMul", "Gemm", "Einsum", "Attention", "LSTM", "GRU", "RNN")


@error(
    53,
    _RTX,
    "an architecture of --gpu-arch has no instructions for this type, and the builder refuses the whole model",
    "use 8 bits or float16 instead (another --strategy), or leave this architecture out of --gpu-arch",
)
def _missing_types(graph: LintGraph) -> Iterator[Hit]:
    for architecture in graph.architectures:
        for kind in _NO_TYPES.get(architecture, ()):
            nodes = [node for node in graph.nodes if kind in _types_of(graph, node)]
            if nodes:
                yield nodes[0], f"{type_name(kind)} at {len(nodes)} nodes, {architecture}"


def _types_of(graph: LintGraph, node: NodeProto) -> set[int]:
    """Element types of a node's outputs, and of the integers of a Q or DQ."""
    integers = {grid_type(graph, node)} if node.op_type in LABEL else set()
    return integers | {graph.element(name) for name in node.output if name}


@error(
    54,
    _RTX,
    "an architecture of --gpu-arch has no matrix product of this type",
    "use float16 for both inputs, as avq build does where values fit, or leave this architecture out of --gpu-arch",
)
def _missing_products(graph: LintGraph) -> Iterator[Hit]:
    for architecture in graph.architectures:
        missing = _NO_PRODUCTS.get(architecture, ())
        for node in graph.of_type(*_PRODUCTS):
            kind = graph.element(node.input[0])
            if kind in missing:
                yield node, f"{node.op_type} in {type_name(kind)}, {architecture}"
