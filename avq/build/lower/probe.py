"""The saturation probe: how much of each quantized activation lies outside its calibrated range.

The daemon runs it now and then on a live frame; rising ratios mean the scene has left the calibration set.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.build.lower.checks import check_plan
from avq.build.lower.grid import real_range
from avq.build.lower.model import Model
from avq.build.lower.qdq import lower_qdq
from avq.types import QuantizationPlan, QuantPoint

#: Outputs are named prefix + tensor (+ "@node:input" for a single reader's edge).
SATURATION_PREFIX = "saturation/"


def saturation_probe(proto: onnx.ModelProto, plan: QuantizationPlan) -> onnx.ModelProto:
    """A model whose outputs are one saturation ratio per static activation point; none without such a point.

    Each output is a float32 scalar in 0..1: the share of elements that clipping moves by more than half a
    step. Data are float; weights are the planned ones in the planned bytes, so that a small bundle does not
    carry the float network along. Only what the ratios need is kept. Raises PlanError when the plan does not fit.
    """
    original = Model(proto)
    check_plan(original, plan)
    constants = {p.edge for p in plan.points if original.constant(p.edge.tensor) is not None}
    watched = [p for p in plan.points if p.mode == "static" and p.edge not in constants]
    stored = [replace(p, mode="weight-only", packed=True) for p in plan.points if p.edge in constants]
    model = Model(lower_qdq(proto, replace(plan, points=tuple(stored), ties=()), "asymmetric"))
    nodes, outputs = list(model.graph.node), []
    for point in sorted(watched, key=lambda p: p.edge):
        nodes.extend(_ratio(model, point))
        outputs.append(helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, []))
    model.replace_nodes(_needed(nodes, [value.name for value in outputs]))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    model.outputs = {value.name for value in outputs}
    model.drop_unused_initializers()
    return model.proto


def _ratio(model: Model, point: QuantPoint) -> list[onnx.NodeProto]:
    """Nodes that compute mean(x < low or x > high); the last one's output is the ratio."""
    tensor, prefix = point.edge.tensor, f"{SATURATION_PREFIX}{point.edge}"
    dtype = helper.tensor_dtype_to_np_dtype(model.element_type(tensor))
    half = point.scale.astype(np.float64) / 2
    low, high = real_range(point)
    ends = []
    for name, value in (("low", low - half), ("high", high + half)):
        array = np.ascontiguousarray(value.astype(dtype))
        ends.append(
            model.add_initializer(numpy_helper.from_array(array, model.names.fresh(f"{prefix}/{name}")))
        )
    below, above, either, counted = (
        model.names.fresh(f"{prefix}/{part}") for part in ("below", "above", "either", "counted")
    )
    return [
        helper.make_node("Less", [tensor, ends[0]], [below], name=below),
        helper.make_node("Greater", [tensor, ends[1]], [above], name=above),
        helper.make_node("Or", [below, above], [either], name=either),
        helper.make_node("Cast", [either], [counted], name=counted, to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", [counted], [model.names.fresh(prefix)], name=prefix, keepdims=0),
    ]


def _needed(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Only the nodes ``outputs`` depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
