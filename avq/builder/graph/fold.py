"""Fold the parts of a graph that no picture changes: constants, shapes, identities, batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from avq.builder.graph.edit import (
    attribute,
    constant_tensor,
    constants,
    consumer_counts,
    fresh_name,
    prune,
    rename_reads,
    replace_nodes,
    set_constant,
    subgraphs,
)
from avq.process import STANDARD_ERROR, suppress_output
from avq.types import F64, AnyArray

_NOT_CONSTANT = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
    | {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan"}
)
_LARGEST_FOLDED = 1 << 25  # elements: an unrolled anchor grid is far smaller
_ROUNDS = 12  # shape -> constant -> shape chains seen in exports are 2 to 4 deep


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and shapes, remove identities, until nothing changes. Returns a model with shapes."""
    for _ in range(_ROUNDS):
        lift_constants(model.graph)
        changed = remove_identities(model.graph)
        changed += inline_ifs(model.graph)
        forget_shapes(model.graph)  # inference keeps what it finds, also sizes that a fold has since fixed
        model = infer_shapes(model)
        changed += fold_constants(model)
        prune(model.graph)
        if not changed:
            break
    return model


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Drop declared shapes, which are stale once a size is fixed or a constant folded; output types stay."""
    del graph.value_info[:]
    constant = {tensor.name for tensor in graph.initializer}
    for output in graph.output:
        if output.type.HasField("tensor_type") and output.name not in constant:
            output.type.tensor_type.ClearField("shape")


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    with suppress_output(STANDARD_ERROR):
        return shape_inference.infer_shapes(model, data_prop=True)


def lift_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initialisers."""
    kept = []
    for node in graph.node:
        value = constant_value(node) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            set_new(graph, node.output[0], value)
    replace_nodes(graph, kept)


def set_new(graph: onnx.GraphProto, name: str, value: AnyArray) -> None:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def constant_value(node: onnx.NodeProto) -> AnyArray | None:
    """Return the array of a Constant node; None for kinds that are not tensors."""
    tensor = constant_tensor(node)
    return None if tensor is None else numpy_helper.to_array(tensor)


def remove_identities(graph: onnx.GraphProto) -> int:
    """Drop Identity, inference Dropout, casts to the same type and transposes that undo each other."""
    types = _types(graph)
    outputs = {o.name for o in graph.output}
    written = {name: node for node in graph.node for name in node.output}
    renamed: dict[str, str] = {}
    removed = []
    for node in graph.node:
        source = _same_as(node, types, written)
        if source is None or (len(node.output) > 1 and node.output[1]):
            continue
        if node.output[0] not in outputs:
            renamed[node.output[0]] = source
            removed.append(id(node))
    for node in graph.node:
        if id(node) in removed:
            continue
        source = _same_as(node, types, written)
        if (
            source is not None
            and node.output[0] in outputs
            and _give_name(graph, written, source, node, renamed)
        ):
            removed.append(id(node))
            break  # one at a time: names moved
    kept = [node for node in graph.node if id(node) not in removed]
    rename_reads(graph, renamed)
    replace_nodes(graph, kept)
    return len(removed)


def _give_name(
    graph: onnx.GraphProto,
    written: Mapping[str, onnx.NodeProto],
    source: str,
    node: onnx.NodeProto,
    renamed: dict[str, str],
) -> bool:
    """Let the producer of ``source`` write the graph output that ``node`` only copies."""
    producer = written.get(renamed.get(source, source))
    if producer is None or source in renamed or source in {o.name for o in graph.output}:
        return False
    producer.output[list(producer.output).index(source)] = node.output[0]
    renamed[source] = node.output[0]
    return True


def _same_as(
    node: onnx.NodeProto, types: Mapping[str, int], written: Mapping[str, onnx.NodeProto]
) -> str | None:
    """Return the tensor that the node's output equals; None when the node changes it."""
    source: str = node.input[0] if node.input else ""
    if node.op_type == "Identity":
        return source
    if node.op_type == "Dropout":
        training = len(node.input) > 2 and node.input[2]
        return None if training else source
    if node.op_type == "Cast" and types.get(source) == attribute(node, "to"):
        return source
    if node.op_type == "Transpose":
        return _undone(node, written.get(source))
    return None


def _undone(node: onnx.NodeProto, before: onnx.NodeProto | None) -> str | None:
    first = attribute(before, "perm") if before is not None and before.op_type == "Transpose" else None
    second = attribute(node, "perm")
    if not isinstance(first, list) or not isinstance(second, list) or before is None:
        return None
    return before.input[0] if [first[i] for i in second] == list(range(len(first))) else None


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info)}
    return types | {t.name: t.data_type for t in graph.initializer}


def inline_ifs(graph: onnx.GraphProto) -> int:
    """Replace an If with a constant condition by the branch it takes."""
    known = {t.name for t in graph.initializer}
    kept: list[onnx.NodeProto] = []
    inlined = 0
    for node in graph.node:
        if node.op_type != "If" or node.input[0] not in known:
            kept.append(node)
            continue
        truth = bool(constants(graph)[node.input[0]].reshape(-1)[0])
        branch = attribute(node, "then_branch" if truth else "else_branch")
        kept.extend(_branch_nodes(graph, node, branch))
        inlined += 1
    replace_nodes(graph, kept)
    return inlined


def _branch_nodes(
    graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto
) -> list[onnx.NodeProto]:
    prefix = fresh_name(graph, f"{node.output[0]}_branch")
    own = {t.name for t in branch.initializer} | {o for n in branch.node for o in n.output if o}
    renamed = {name: f"{prefix}/{name}" for name in own}
    for tensor in branch.initializer:
        set_new(graph, renamed[tensor.name], numpy_helper.to_array(tensor))
    rename_reads(branch, renamed)
    nodes = list(branch.node)
    for child in nodes:
        child.name = f"{prefix}/{child.name}" if child.name else ""
        for index, name in enumerate(child.output):
            child.output[index] = renamed.get(name, name)
    copies = [
        helper.make_node("Identity", [renamed.get(inner.name, inner.name)], [outer], name=f"{prefix}/out{i}")
        for i, (inner, outer) in enumerate(zip(branch.output, node.output, strict=True))
    ]
    return [*nodes, *copies]


def fold_constants(model: onnx.ModelProto) -> int:
    """Evaluate nodes whose inputs are all known, with the onnx reference, and shapes that are static."""
    graph = model.graph
    known = constants(graph)
    shapes = _static_shapes(graph)
    outputs = {o.name for o in graph.output}
    kept, folded = [], 0
    for node in graph.node:
        values = None if outputs & set(node.output) else _evaluate(model, node, known, shapes)
        if values is None:
            kept.append(node)
            continue
        folded += 1
        for name, value in values.items():
            known[name] = value
            set_new(graph, name, value)
    replace_nodes(graph, kept)
    return folded


def _static_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return shapes


def _evaluate(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    known: Mapping[str, AnyArray],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, AnyArray] | None:
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        return {node.output[0]: _shape_value(node, shapes[node.input[0]])}
    needed = [name for name in node.input if name]
    if node.op_type in _NOT_CONSTANT or subgraphs(node) or not all(name in known for name in needed):
        return None
    if any(int(np.prod(shapes.get(name, (1,)))) > _LARGEST_FOLDED for name in node.output):
        return None
    return _reference(model, node, {name: known[name] for name in needed})


def _shape_value(node: onnx.NodeProto, shape: tuple[int, ...]) -> AnyArray:
    if node.op_type == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64))
    start, end = attribute(node, "start", 0), attribute(node, "end")
    return np.asarray(shape[start:end], np.int64)


def _reference(
    model: onnx.ModelProto, node: onnx.NodeProto, feeds: Mapping[str, AnyArray]
) -> dict[str, AnyArray] | None:
    inputs = [onnx.ValueInfoProto(name=name) for name in feeds]
    for value, array in zip(inputs, feeds.values(), strict=True):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    names = [name for name in node.output if name]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names]
    body = helper.make_graph([node], "constant", inputs, outputs)
    single = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        values = ReferenceEvaluator(single).run(None, dict(feeds))
    except Exception:  # an operator the reference does not know stays in the graph
        return None
    arrays = {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
    return arrays if all(a.size <= _LARGEST_FOLDED and a.dtype != object for a in arrays.values()) else None


_CONVS = ("Conv", "ConvTranspose")


def fold_norms(graph: onnx.GraphProto) -> int:
    """Fold BatchNormalization, and arithmetic with per-channel constants, into the convolution before them.

    w' = w * gain per output channel, b' = b * gain + shift, in float64. Returns how many were folded.
    """
    known, counts = constants(graph), consumer_counts(graph)
    convs: dict[str, onnx.NodeProto] = {}
    changed: dict[str, AnyArray] = {}
    kept = []
    for node in graph.node:
        conv = next((convs[name] for name in node.input if name in convs), None)
        affine = _affine(node, conv, known) if conv is not None and counts[conv.output[0]] == 1 else None
        if conv is None or affine is None:
            kept.append(node)
            if node.op_type in _CONVS and all(name in known for name in node.input[1:] if name):
                convs[node.output[0]] = node
            continue
        changed |= _scale(conv, known, counts, *affine)
        known |= changed
        conv.output[0] = node.output[0]
        convs[node.output[0]] = conv
    folded = len(graph.node) - len(kept)
    replace_nodes(graph, kept)
    for name, value in changed.items():
        set_constant(graph, name, value)
    return folded


def _channels(conv: onnx.NodeProto, known: Mapping[str, AnyArray]) -> int:
    weight = known[conv.input[1]]
    if conv.op_type == "Conv":
        return int(weight.shape[0])
    return int(weight.shape[1]) * int(attribute(conv, "group", 1))


def _affine(
    node: onnx.NodeProto, conv: onnx.NodeProto, known: Mapping[str, AnyArray]
) -> tuple[F64, F64] | None:
    """Return the (gain, shift), (C,) float64 each, that the node applies to the convolution's output."""
    channels = _channels(conv, known)
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, known)
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(set(node.input)) != 2:
        return None
    first = node.input[0] == conv.output[0]
    value = _per_channel(known.get(node.input[1 if first else 0]), channels, known[conv.input[1]].ndim)
    if value is None or (not first and node.op_type in ("Sub", "Div")):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Div":
        return (1.0 / value, zero) if np.all(value) else None
    return {"Mul": (value, zero), "Add": (one, value), "Sub": (one, -value)}[node.op_type]


def _batch_norm(node: onnx.NodeProto, known: Mapping[str, AnyArray]) -> tuple[F64, F64] | None:
    training = attribute(node, "training_mode", 0)
    if training or any(name not in known for name in node.input[1:5]):
        return None
    scale, bias, mean, variance = (known[name].astype(np.float64) for name in node.input[1:5])
    gain = scale / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
    return gain, bias - mean * gain


def _per_channel(value: AnyArray | None, channels: int, rank: int) -> F64 | None:
    """Return (C,) float64 when ``value`` is a float scalar or varies along the channel axis only."""
    if value is None or value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if shape[1] not in (1, channels) or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    spread: F64 = np.broadcast_to(value.reshape(-1).astype(np.float64), (channels,)).copy()
    return spread


def _scale(
    conv: onnx.NodeProto, known: Mapping[str, AnyArray], counts: Mapping[str, int], gain: F64, shift: F64
) -> dict[str, AnyArray]:
    """Return the new weight and bias of the convolution; shared weights are copied."""
    weight = known[conv.input[1]]
    has_bias = len(conv.input) > 2 and conv.input[2]
    bias = known[conv.input[2]].astype(np.float64) if has_bias else np.zeros(len(gain))
    if not has_bias:
        del conv.input[2:]
        conv.input.append("")
    for index, role in ((1, "weight"), (2, "bias")):
        if not conv.input[index] or counts[conv.input[index]] > 1:
            conv.input[index] = f"{conv.output[0]}/{role}_folded"
    return {
        conv.input[1]: _scaled_weight(conv, weight, gain).astype(weight.dtype),
        conv.input[2]: (bias * gain + shift).astype(weight.dtype),
    }


def _scaled_weight(conv: onnx.NodeProto, weight: AnyArray, gain: F64) -> F64:
    wide = weight.astype(np.float64)
    trailing = (1,) * (weight.ndim - 2)
    if conv.op_type == "Conv":
        return wide * gain.reshape(-1, 1, *trailing)
    group = int(attribute(conv, "group", 1))
    grouped = wide.reshape(group, -1, *weight.shape[1:])
    scaled: F64 = grouped * gain.reshape(group, 1, -1, *trailing)
    return scaled.reshape(weight.shape)
