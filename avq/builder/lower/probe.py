"""Saturation probe: the share of each quantized activation outside its calibrated range.

The daemon runs it now and then on a live frame; ratios unlike those of the calibration pictures mean that the scene
has left the calibration set. Values that shrink (dark or flat scenes) never leave a range, so there is a second ratio
per tensor: the share outside the inner eighth of the range, which falls when values shrink and rises when
they grow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.lower.grid import check_plan, real_range
from avq.builder.lower.model import Model
from avq.builder.lower.qdq import lower_qdq
from avq.measure.drift import OCCUPANCY_PREFIX, SATURATION_PREFIX
from avq.types import F64, QuantizationPlan, QuantPoint

#: Inner part of a range; occupancy counts the values outside it.
INNER_SHARE = 1 / 8


def saturation_probe(proto: onnx.ModelProto, plan: QuantizationPlan) -> onnx.ModelProto:
    """Write a model with two outputs per static activation range, saturation and occupancy.

    Each is a float32 scalar in 0..1. Saturation: the share of elements that clipping moves by more than half
    a step. Occupancy: the share of elements outside INNER_SHARE of the range. Data are float; weights are the
    planned ones in the planned bytes, so that a small bundle does not carry the float network along. Only nodes
    that the ratios need are kept; a plan without static activations gives no outputs.

    Raises:
        PlanError: the plan does not fit the model.
    """
    original = Model(proto)
    check_plan(original, plan)
    constants = {p.edge for p in plan.points if original.constant(p.edge.tensor) is not None}
    watched = [p for p in plan.points if p.mode == "static" and p.edge not in constants]
    stored = [replace(p, mode="weight-only", packed=True) for p in plan.points if p.edge in constants]
    model = Model(lower_qdq(proto, replace(plan, points=tuple(stored), ties=()), "asymmetric"))
    nodes, outputs = list(model.graph.node), []
    for point in _distinct(sorted(watched, key=lambda p: p.edge)):
        for prefix, ends in ((SATURATION_PREFIX, _ends(point)), (OCCUPANCY_PREFIX, _inner_ends(point))):
            nodes.extend(_ratio(model, point.edge.tensor, f"{prefix}{point.edge}", ends))
            outputs.append(helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, []))
    model.replace_nodes(_needed(nodes, [value.name for value in outputs]))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    model.outputs = {value.name for value in outputs}
    model.drop_unused_initializers()
    return model.proto


def _distinct(points: list[QuantPoint]) -> list[QuantPoint]:
    """Keep one point per tensor and grid: the first reader names the ratio."""
    first: dict[tuple[object, ...], QuantPoint] = {}
    for point in points:
        key = (point.edge.tensor, point.axis, *(end.tobytes() for end in _ends(point)))
        first.setdefault(key, point)
    return list(first.values())


def _ends(point: QuantPoint) -> tuple[F64, F64]:
    """Return the range of the integers, half a step wider on either side."""
    half = point.scale.astype(np.float64) / 2
    low, high = real_range(point)
    return low - half, high + half


def _inner_ends(point: QuantPoint) -> tuple[F64, F64]:
    low, high = (end.astype(np.float64) for end in real_range(point))
    return low * INNER_SHARE, high * INNER_SHARE


def _ratio(model: Model, tensor: str, prefix: str, ends: tuple[F64, F64]) -> list[onnx.NodeProto]:
    """Return the nodes that compute mean(x < low or x > high); the last one's output is the ratio."""
    dtype = helper.tensor_dtype_to_np_dtype(model.element_type(tensor))
    names = []
    for name, value in zip(("low", "high"), ends, strict=True):
        array = np.ascontiguousarray(value.astype(dtype))
        names.append(
            model.add_initializer(numpy_helper.from_array(array, model.names.fresh(f"{prefix}/{name}")))
        )
    below, above, either, counted = (
        model.names.fresh(f"{prefix}/{part}") for part in ("below", "above", "either", "counted")
    )
    return [
        helper.make_node("Less", [tensor, names[0]], [below], name=below),
        helper.make_node("Greater", [tensor, names[1]], [above], name=above),
        helper.make_node("Or", [below, above], [either], name=either),
        helper.make_node("Cast", [either], [counted], name=counted, to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", [counted], [model.names.fresh(prefix)], name=prefix, keepdims=0),
    ]


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Return only the nodes that ``outputs`` depend on, in their order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]
