"""The parts of a bundle that DLA and TensorRT 10's own calibration build from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from avq.builder.calibrate.calibration import Calibration
from avq.builder.cross_compile.fp16 import activation_peaks
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, write_cache
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.holdout import HoldoutSet
from avq.builder.lower.model import Model
from avq.builder.request import Request
from avq.bundle import IMPLICIT, IMPLICIT_CACHE, IMPLICIT_PRECISIONS
from avq.errors import PlanError
from avq.types import Edge, QuantizationPlan

# What DLA and TensorRT 10's own INT8 take instead of Q/DQ: the float model, a range per tensor,
# precisions.

_LEVELS = 127
#: Scales below are no normal float32 to TensorRT, or make integers of rounding noise.
_SMALLEST = 1e-12
HEADER = "TRT-100300-EntropyCalibration2"


@dataclass(frozen=True)
class Implicit:
    """Attributes:
    model: the float model with the plan's constants, without pairs.
    cache: a calibration cache with one line per float tensor.
    precisions: node name -> "int8", "fp16" or "fp32", where the plan decides.
    """

    model: bytes
    cache: bytes
    precisions: Mapping[str, str]


def lower_implicit(proto: onnx.ModelProto, plan: QuantizationPlan) -> Implicit:
    """The three files of ``plan``, which must hold ``ranges``.

    Raises PlanError for grids that are not signed bytes around zero, and for tensors without a range.
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
    """Activations in file order: what a layer of the parsed network writes."""
    constants = {*model.initializers, *model.constant_nodes}
    made = [name for node in model.graph.node for name in node.output if name and name not in constants]
    return [name for name in made if model.element_type(name) == onnx.TensorProto.FLOAT]


def _scale(plan: QuantizationPlan, tensor: str) -> float:
    """The plan's own scale where it quantizes the whole tensor, else from its range."""
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
            f"the plan has no range for '{tensor}'", fix="DLA asks for one on every tensor: build with --dla"
        )
    low, high = plan.ranges[tensor]
    return float(np.float32(max(-low, high, _SMALLEST * _LEVELS) / _LEVELS))


def with_ranges(
    request: Request,
    analysis: ModelAnalysis,
    plan: QuantizationPlan,
    calibration: Calibration,
    holdout: HoldoutSet,
) -> QuantizationPlan:
    """``plan`` with a range for every float tensor, when the recipe asks for DLA.

    From the counted pictures; tensors that are not counted (shapes, heads) take their peak on the held-out ones.
    """
    if not request.recipe.dla:
        return plan
    model = analysis.model
    tensors = [prepared.tensor for prepared in holdout.inputs]
    peaks = activation_peaks(model.proto, model.view, tensors, request.reference)
    ranges = {name: (-peak, peak) for name, peak in peaks.items()}
    counted = calibration.collect(())
    for name in (name for name in counted.tensors if name in ranges):
        histogram = counted.range(name, "minmax")
        ranges[name] = (histogram.low, histogram.high)
    return replace(plan, ranges=ranges)


def implicit_parts(request: Request, analysis: ModelAnalysis, plan: QuantizationPlan) -> dict[str, bytes]:
    """Three parts, by name; none unless the recipe asks for DLA."""
    if not request.recipe.dla:
        return {}
    written = lower_implicit(analysis.model.proto, plan)
    return {
        IMPLICIT: written.model,
        IMPLICIT_CACHE: written.cache,
        IMPLICIT_PRECISIONS: json.dumps(dict(written.precisions), sort_keys=True).encode(),
    }
