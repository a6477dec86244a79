"""Rules on invalid ONNX graphs: dangling tensors, cycles, operators against their definition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from avq.builder.graph.edit import int_attribute, ints_attribute, text_attribute
from avq.builder.lint.graph import LintGraph
from avq.builder.lint.rule import ALL, Hit, error

_EXPORT = "export the model again"


@error(36, ALL, "a node reads a tensor that does not exist", _EXPORT)
def _dangling(graph: LintGraph) -> Iterator[Hit]:
    known = {*graph.inputs, *graph.constants, *graph.producers, *_sparse(graph)}
    for node in graph.nodes:
        missing = sorted({name for name in node.input if name} - known)
        if missing:
            yield node, ", ".join(missing)
    for name in sorted(graph.outputs - known):
        yield name, "a graph output"
    if not graph.proto.graph.output:
        yield graph.proto.graph.name or "graph", "no output"


@error(37, ALL, "a node depends on its own output", _EXPORT)
def _cycle(graph: LintGraph) -> Iterator[Hit]:
    waiting = {id(node): len({n for n in node.input if n in graph.producers}) for node in graph.nodes}
    ready = [node for node in graph.nodes if not waiting[id(node)]]
    while ready:
        done = ready.pop()
        for name in set(done.output):
            for reader in {id(r): r for r in graph.readers.get(name, [])}.values():
                waiting[id(reader)] -= 1
                if not waiting[id(reader)]:
                    ready.append(reader)
    stuck = [node for node in graph.nodes if waiting[id(node)] > 0]
    if stuck and not _duplicates(graph):
        yield stuck[0], f"{len(stuck)} nodes in a cycle"


@error(38, ALL, "two tensors have one name", _EXPORT)
def _ambiguous(graph: LintGraph) -> Iterator[Hit]:
    for name, count in sorted(_duplicates(graph).items()):
        yield name, f"{count} tensors"


@error(
    39, ALL, "the bytes of a constant do not fit its shape", "export the model again, with its external data"
)
def _corrupt_constant(graph: LintGraph) -> Iterator[Hit]:
    for name, tensor in graph.constants.items():
        if tensor.data_type != TensorProto.STRING and not _is_complete(tensor):
            yield name, f"{list(tensor.dims)}, {len(tensor.raw_data)} bytes"


@error(
    40,
    ALL,
    "a node does not match its ONNX definition",
    "convert the model to opset 17 or newer, or export it again",
)
def _undefined(graph: LintGraph) -> Iterator[Hit]:
    if not graph.opset:
        yield graph.proto.graph.name or "graph", "the model has no opset"
        return
    for node in (n for n in graph.nodes if n.domain in ("", "ai.onnx")):
        seen = _against_schema(node, graph.opset)
        if seen:
            yield node, seen


@error(
    41, ALL, "element types do not fit the operator", "cast, or give both sides of Q/DQ the same float type"
)
def _mixed_types(graph: LintGraph) -> Iterator[Hit]:
    inferred = graph.inferred
    if inferred.complaint and inferred.about_types:
        yield inferred.place or "graph", inferred.complaint


@error(42, ALL, "shapes do not fit the operator", _EXPORT)
def _misshaped(graph: LintGraph) -> Iterator[Hit]:
    inferred = graph.inferred
    if inferred.complaint and not inferred.about_types:
        yield inferred.place or "graph", inferred.complaint
    for node in graph.nodes:
        seen = _why_unfit(graph, node)
        if seen:
            yield node, seen


def _sparse(graph: LintGraph) -> set[str]:
    return {tensor.values.name for tensor in graph.proto.graph.sparse_initializer}


def _duplicates(graph: LintGraph) -> dict[str, int]:
    proto = graph.proto.graph
    inputs = [value.name for value in proto.input]
    listed = {tensor.name for tensor in proto.initializer} & set(inputs)  # defaults, as old files list them
    written = [tensor.name for tensor in proto.initializer if tensor.name not in listed]
    written += [name for node in proto.node for name in node.output if name] + inputs
    return {name: count for name, count in Counter(written).items() if count > 1}


def _is_complete(tensor: TensorProto) -> bool:
    if tensor.data_location == TensorProto.EXTERNAL:
        return True  # its bytes are in an external file, which the reader checks
    count = math.prod(tensor.dims)
    if not tensor.HasField("raw_data"):
        return _is_readable(tensor)
    bits = _BITS.get(tensor.data_type)
    return bits is None or len(tensor.raw_data) == (count * bits + 7) // 8


def _is_readable(tensor: TensorProto) -> bool:
    try:
        onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        return False
    return True


_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.DOUBLE: 64, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32, TensorProto.INT64: 64, TensorProto.UINT64: 64,
    TensorProto.BOOL: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip


def _against_schema(node: NodeProto, opset: int) -> str:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} is unknown at opset {opset}"
    given = len(node.input)
    if not schema.min_input <= given <= schema.max_input:
        return f"{given} inputs, {schema.min_input} to {schema.max_input} are defined"
    names = {attribute.name for attribute in node.attribute}
    missing = [name for name, a in schema.attributes.items() if a.required and name not in names]
    if missing:
        return f"without attribute {', '.join(missing)}"
    unknown = sorted(name for name in names if name not in schema.attributes)
    return f"attribute {', '.join(unknown)} is unknown at opset {opset}" if unknown else ""


def _why_unfit(graph: LintGraph, node: NodeProto) -> str:
    if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1:
        return _why_no_convolution(graph, node)
    if node.op_type == "Reshape" and len(node.input) > 1:
        return _why_no_reshape(graph, node)
    outgoing = [graph.shape(name) for name in node.output if name in graph.inferred.shapes]
    return next((f"gives {list(s)}" for s in outgoing if s and any(d is not None and d < 0 for d in s)), "")


def _why_no_convolution(graph: LintGraph, node: NodeProto) -> str:
    """Compare channels, bias and kernel, which ONNX's inference does not check."""
    data, weight = graph.shape(node.input[0]), graph.shape(node.input[1])
    if not data or not weight or len(data) != len(weight) or None in weight:
        return f"data {list(data)}, weights {list(weight)}" if data and weight and None not in weight else ""
    group = int_attribute(node, "group", 1)
    plain = node.op_type == "Conv"
    wanted = (weight[1] or 0) * group if plain else weight[0]
    if data[1] not in (None, wanted):
        return f"{data[1]} channels, the weights {list(weight)} need {wanted}"
    outputs = weight[0] if plain else (weight[1] or 0) * group
    if group < 1 or (outputs or 0) % group:
        return f"{group} groups of weights {list(weight)}"
    bias = graph.shape(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and None not in bias and bias != (outputs,):
        return f"{list(bias)} biases, {outputs} channels"
    kernel = ints_attribute(node, "kernel_shape")
    if kernel and kernel != list(weight[2:]):
        return f"kernel_shape {kernel}, weights {list(weight)}"
    return _why_empty(node, data, weight) if plain else ""


def _why_empty(node: NodeProto, data: tuple[int | None, ...], weight: tuple[int | None, ...]) -> str:
    """Find a kernel that is larger than its padded input."""
    rank = len(data) - 2
    pads = ints_attribute(node, "pads") or [0] * 2 * rank
    dilations = ints_attribute(node, "dilations") or [1] * rank
    padded_by_size = text_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if padded_by_size or len(pads) != 2 * rank or len(dilations) != rank:
        return ""
    for axis in range(rank):
        size, reach = data[axis + 2], dilations[axis] * ((weight[axis + 2] or 1) - 1) + 1
        if size is not None and size + pads[axis] + pads[axis + rank] < reach:
            return f"a kernel of {reach} on {size} pixels"
    return ""


def _why_no_reshape(graph: LintGraph, node: NodeProto) -> str:
    data, target = graph.shape(node.input[0]), graph.value(node, 1)
    if not data or None in data or target is None:
        return ""
    sizes = [int(d) for d in target.ravel()]
    if not int_attribute(node, "allowzero", 0):
        sizes = [data[i] or 0 if d == 0 and i < len(data) else d for i, d in enumerate(sizes)]
    volume, known = math.prod(d or 0 for d in data), math.prod(d for d in sizes if d >= 0)
    fits = (known > 0 and volume % known == 0) if -1 in sizes else volume == known
    return "" if fits else f"{list(data)} to {target.ravel().tolist()}"
