"""Bundle parts for DLA and for TensorRT 10's implicit INT8.

Both take the float model, a range per tensor and precisions instead of Q/DQ nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from avq.builder.context import BuildContext
from avq.builder.cross_compile.fp16 import activation_peaks
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, write_cache
from avq.builder.lower.model import Model
from avq.bundle import IMPLICIT, IMPLICIT_CACHE, IMPLICIT_PRECISIONS
from avq.errors import PlanError
from avq.types import Edge, QuantizationPlan

_LEVELS = 127
#: Smaller scales are denormal float32 in TensorRT, or turn rounding noise into integers.
_SMALLEST = 1e-12
HEADER = "TRT-100300-EntropyCalibration2"


@dataclass(frozen=True)
class Implicit:
    """Model, ranges and precisions of one plan.

    Attributes:
        model: the float model with the plan's constants, without Q/DQ pairs.
        cache: a calibration cache with one line per float tensor.
        precisions: node name -> "int8", "fp16" or "fp32", where the plan decides.
    """

    model: bytes
    cache: bytes
    precisions: Mapping[str, str]


def lower_implicit(proto: onnx.ModelProto, plan: QuantizationPlan) -> Implicit:
    """Lower ``plan``, which must hold ``ranges``, to the three files.

    Raises:
        PlanError: a grid is not of signed bytes around zero, or a tensor has no range.
    """
    model = Model(proto)
    for name, array in plan.overrides.items():
        model.replace_constant(name, array)
    entries = [CacheEntry.of(name, _scale(plan, name)) for name in _float_tensors(model)]
    precisions = {
        name: choice.precision
        for name, choice in sorted(plan.precisions.items())
        if choice.precision in ("int8", "fp16", "fp32") and name in model.nodes
    }
    data = model.proto.SerializeToString(deterministic=True)
    return Implicit(bytes(data), write_cache(TrtCache(HEADER, tuple(entries))), precisions)


def _float_tensors(model: Model) -> list[str]:
    """Return the float activations in file order: the outputs of the parsed network's layers."""
    constants = {*model.initializers, *model.constant_nodes}
    outputs = [name for node in model.graph.node for name in node.output if name and name not in constants]
    return [name for name in outputs if model.element_type(name) == onnx.TensorProto.FLOAT]


def _scale(plan: QuantizationPlan, tensor: str) -> float:
    """Return the plan's scale where it quantizes the whole tensor, else the scale of its range."""
    point = plan.by_edge.get(Edge(tensor))
    if point is not None:
        if point.mode != "static" or not point.symmetric or point.bits != 8 or point.scale.ndim:
            raise PlanError(
                f"the grid of '{tensor}' cannot be a line of a calibration cache",
                seen=f"{point.bits} bits, {point.mode}, scales of shape {list(point.scale.shape)}",
                fix="plan for DLA with INT8 around zero, one scale per tensor",
            )
        return float(point.scale)
    if tensor not in plan.ranges:
        raise PlanError(
            f"the plan has no range for '{tensor}'", fix="DLA needs a range on every tensor: build with --dla"
        )
    low, high = plan.ranges[tensor]
    return float(np.float32(max(-low, high, _SMALLEST * _LEVELS) / _LEVELS))


def with_ranges(plan: QuantizationPlan, context: BuildContext) -> QuantizationPlan:
    """Return ``plan`` with a range for every float tensor when the recipe builds for DLA, else unchanged.

    Ranges come from the calibration pictures; tensors that are not counted there (shapes, heads) take their
    peak on the held-out pictures.
    """
    if not context.recipe.dla:
        return plan
    model = context.analysis.model
    tensors = [prepared.tensor for prepared in context.holdout.inputs]
    peaks = activation_peaks(model.proto, model.view, tensors, context.request.reference)
    ranges = {name: (-peak, peak) for name, peak in peaks.items()}
    counted = context.calibration.collect(())
    for name in (name for name in counted.tensors if name in ranges):
        histogram = counted.range(name, "minmax")
        ranges[name] = (histogram.low, histogram.high)
    return replace(plan, ranges=ranges)


def implicit_parts(plan: QuantizationPlan, context: BuildContext) -> dict[str, bytes]:
    """Return the three DLA parts of the bundle by name; none unless the recipe builds for DLA."""
    if not context.recipe.dla:
        return {}
    written = lower_implicit(context.analysis.model.proto, plan)
    return {
        IMPLICIT: written.model,
        IMPLICIT_CACHE: written.cache,
        IMPLICIT_PRECISIONS: json.dumps(dict(written.precisions), sort_keys=True).encode(),
    }
