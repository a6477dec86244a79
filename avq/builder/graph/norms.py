"""Batch normalisation and per-channel scaling folded into the convolution before them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from avq.builder.graph.edit import attribute, constants, consumer_counts, replace_nodes, set_constant
from avq.types import F64, AnyArray

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
            if node.op_type in _CONVS and node.input[1] in known:
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
    """Per-channel (gain, shift) that the node applies to the convolution's output."""
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
    """(C,) when ``value`` is a float scalar or varies along the channel axis only."""
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
    """New weight and bias of the convolution; weights that others share get a copy of their own."""
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
