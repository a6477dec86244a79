"""What a plan must satisfy before it is written; every refusal names the edge."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from avq.builder.lower.model import FLOATS, Model
from avq.errors import PlanError, nearest
from avq.types import Edge, QuantizationPlan, QuantPoint


def check_plan(model: Model, plan: QuantizationPlan) -> None:
    """PlanError for unknown tensors and nodes, unequal ties, and points QuantizeLinear cannot express."""
    for point in plan.points:
        _check_edge(model, point.edge)
        if model.constant(point.edge.tensor) is None:
            _check_activation(model, point)
    for name in plan.precisions:
        if name not in model.nodes:
            raise PlanError(f"the plan names an unknown node '{name}'", fix=nearest(name, model.nodes))
    check_ties(plan)


def check_ties(plan: QuantizationPlan) -> None:
    """PlanError when tied edges do not share one scale and zero point."""
    for tie in plan.ties:
        points = [plan.by_edge[edge] for edge in sorted(tie) if edge in plan.by_edge]
        grids = {(p.scale.tobytes(), p.zero_point.tobytes()) for p in points}
        if len(grids) > 1:
            seen = ", ".join(f"{p.edge} {np.ravel(p.scale)[0]:.6g}" for p in points[:4])
            raise PlanError("tied edges have different scales", seen=seen, fix="use merged_range for ties")


def _check_edge(model: Model, edge: Edge) -> None:
    known = model.producers.keys() | model.inputs | model.initializers.keys()
    if edge.tensor not in known:
        raise PlanError(f"the plan names an unknown tensor '{edge.tensor}'", fix=nearest(edge.tensor, known))
    kind = model.element_type(edge.tensor)
    if kind not in FLOATS:
        raise PlanError(
            f"'{edge.tensor}' is not a float tensor and cannot be quantized",
            seen=onnx.TensorProto.DataType.Name(kind),
            fix="quantize the tensor after the cast to float",
        )
    if edge.node:
        _check_reader(model, edge)


def _check_reader(model: Model, edge: Edge) -> None:
    node = model.nodes.get(edge.node)
    if node is None:
        raise PlanError(f"the plan names an unknown node '{edge.node}'", fix=nearest(edge.node, model.nodes))
    inputs = list(node.input)
    if not 0 <= edge.input_index < len(inputs) or inputs[edge.input_index] != edge.tensor:
        raise PlanError(
            f"input {edge.input_index} of '{edge.node}' is not '{edge.tensor}'",
            seen=", ".join(inputs),
            fix="an edge names the tensor its node reads at that index",
        )


def _check_activation(model: Model, point: QuantPoint) -> None:
    if point.mode == "weight-only":
        _refuse(point, "mode weight-only", "weight-only points belong on constants")
    if point.bits == 1 or point.packed:
        _refuse(point, "packed or of one bit", "only constants are packed, and only they have two levels")
    if point.mode == "dynamic" and (clipped(point) or point.bits != 8 or point.scale.ndim):
        _refuse(
            point, "a dynamic grid of its own", "DynamicQuantizeLinear has 8 bits and one scale per tensor"
        )
    if point.mode == "dynamic" and model.element_type(point.edge.tensor) != onnx.TensorProto.FLOAT:
        _refuse(point, "not float32", "DynamicQuantizeLinear reads float32 only")
    if point.rounding != "half_even":
        _refuse(point, f"rounding {point.rounding}", "QuantizeLinear rounds half to even and nothing else")
    if point.block_size:
        _refuse(point, f"blocks of {point.block_size}", "only constants can be quantized in blocks")
    if point.scale.ndim and clipped(point):
        _refuse(point, "a narrow or low-bit grid per channel", "give activations one scale per tensor")


def _refuse(point: QuantPoint, seen: str, fix: str) -> None:
    raise PlanError(f"the activation {point.edge} cannot be written", seen=seen, fix=fix)


def clipped(point: QuantPoint) -> bool:
    """True when the grid is smaller than its storage type, so values must be clipped before Q."""
    return point.narrow or point.bits not in (8, 16)


def needed_opset(points: Iterable[QuantPoint], model_has_halves: bool) -> int:
    """The oldest operator set that can say all ``points``."""
    opset = 19 if model_has_halves else 13
    for point in points:
        if point.block_size or point.bits > 8 or point.native_int4:
            opset = 21  # blocks, 16-bit and 4-bit integers
    return opset
