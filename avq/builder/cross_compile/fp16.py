"""FP16 for every node that is not INT8, as node precisions in the plan of a GPU target.

Range rules of NVIDIA's AutoCast (Model Optimizer): a node whose tensors go beyond 512 in size, or whose constants
beyond 65504, stays FP32; so do operators without an FP16 form, and readers of INT4 weights whose scales, which
are then in FP16 too, do not fit it. Graph inputs and outputs keep their types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from avq.builder.calibrate.observe import observe
from avq.builder.lower.grid import quantize_constant
from avq.builder.lower.precision import FP16_MAX, FP16_MIN_SCALE, FP16_QDQ_OPSET, has_fp16_form
from avq.hookspecs import Engine
from avq.types import U8, GraphView, NodePrecision, NodeView, QuantizationPlan, QuantPoint, SessionOptions

LARGEST_ACTIVATION = 512.0
PICTURES = 16
_MEMORY_MB = 256
# Their output type is an attribute, or they hold graphs of their own.
_OWN_TYPE = frozenset(
    (
        "Cast",
        "CastLike",
        "Constant",
        "ConstantOfShape",
        "EyeLike",
        "RandomNormal",
        "RandomUniform",
        "If",
        "Loop",
        "Scan",
    )
)


def activation_peaks(
    proto: onnx.ModelProto, graph: GraphView, inputs: Sequence[U8], engine: Engine
) -> dict[str, float]:
    """Measure the largest magnitude of every float32 activation.

    Args:
        proto: the float model.
        graph: its view.
        inputs: network inputs, (1, 3, h, w) uint8 each; the first PICTURES are run.
        engine: runs the model.
    """
    tensors = [out for node in graph.nodes for out in node.outputs if _is_float(graph, out)]
    observation = observe(proto, tensors, _MEMORY_MB)
    peaks: dict[str, float] = {}
    for number in range(len(observation.passes)):
        session = engine.open(observation.model_of(number), SessionOptions())
        try:
            for tensor in inputs[:PICTURES]:
                for name, values in session.infer(tensor).items():
                    peaks[name] = max(peaks.get(name, 0.0), float(np.abs(values).max(initial=0.0)))
        finally:
            session.close()
    return peaks


def to_fp16(graph: GraphView, plan: QuantizationPlan, peaks: Mapping[str, float]) -> QuantizationPlan:
    """Return ``plan`` with FP16 wherever the rules allow it, and the reasons; points and overrides stay."""
    plan = replace(plan, points=tuple(_with_dead_scales_raised(graph, plan, p) for p in plan.points))
    precisions = dict(plan.precisions)
    for node in graph.nodes:
        if node.op in _OWN_TYPE or not all(_is_float(graph, out) for out in node.outputs if out):
            continue
        why_not = _why_not(graph, node, peaks) or _why_scales_do_not_fit(plan, node)
        before = precisions.get(node.name)
        if _is_quantized(plan, node):
            reason = before.reason if before is not None else "quantized"
            precisions[node.name] = NodePrecision("int8", reason, "fp32" if why_not else "fp16")
        elif why_not:
            precisions[node.name] = NodePrecision("fp32", _joined(before, why_not))
        else:
            precisions[node.name] = NodePrecision("fp16", _joined(before, "within FP16's range"))
    return replace(plan, precisions=precisions)


def _joined(before: NodePrecision | None, reason: str) -> str:
    return reason if before is None else f"{before.reason}; {reason}"


def _is_quantized(plan: QuantizationPlan, node: NodeView) -> bool:
    """Whether both operands are integers, so that the kernel multiplies in INT8."""
    return len(node.inputs) > 1 and all(
        plan.point_for(node.inputs[index], node.name, index) is not None for index in (0, 1)
    )


def _why_not(graph: GraphView, node: NodeView, peaks: Mapping[str, float]) -> str:
    """Return the reason against FP16; '' when the node may run in it."""
    if not has_fp16_form(node.op, node.domain, FP16_QDQ_OPSET):
        return f"{node.op} has no FP16 form"
    for name, peak, limit in _magnitudes(graph, node, peaks):
        if not peak <= limit:  # NaN too
            return f"|{name}| reaches {peak:g}, FP16 is used up to {limit:g}"
    return ""


def _with_dead_scales_raised(graph: GraphView, plan: QuantizationPlan, point: QuantPoint) -> QuantPoint:
    """Raise the scales of INT4 channels of zeros: any scale fits them, and theirs may not fit FP16."""
    if not point.native_int4 or point.axis is None or point.block_size:
        return point
    name = point.edge.tensor
    integers = quantize_constant(plan.overrides.get(name, graph.constants[name]), point)
    dead = ~np.moveaxis(integers, point.axis, 0).reshape(point.scale.size, -1).any(axis=1)
    if not dead.any():
        return point
    raised = np.where(dead, np.maximum(point.scale, np.float32(FP16_MIN_SCALE)), point.scale)
    return replace(point, scale=raised.astype(np.float32))


def _why_scales_do_not_fit(plan: QuantizationPlan, node: NodeView) -> str:
    """Return the reason against FP16 when INT4 weights have a scale outside its normal numbers; else ''."""
    for index, name in enumerate(node.inputs):
        point = plan.point_for(name, node.name, index)
        if point is None or not point.native_int4:
            continue
        low, high = float(point.scale.min()), float(point.scale.max())
        if low < FP16_MIN_SCALE or high > FP16_MAX:
            return (
                f"its INT4 weights have scales from {low:g} to {high:g}, FP16 holds {FP16_MIN_SCALE:g} "
                f"to {FP16_MAX:g}"
            )
    return ""


def _magnitudes(
    graph: GraphView, node: NodeView, peaks: Mapping[str, float]
) -> Iterator[tuple[str, float, float]]:
    for name in (*node.inputs, *node.outputs):
        if name in graph.constants:
            value = graph.constants[name]
            if value.dtype == np.float32:
                yield name, float(np.abs(value).max(initial=0.0)), FP16_MAX
        elif name and _is_float(graph, name):
            yield name, peaks.get(name, float("inf")), LARGEST_ACTIVATION


def _is_float(graph: GraphView, tensor: str) -> bool:
    view = graph.tensors.get(tensor)
    return view is not None and view.dtype == "float32"
