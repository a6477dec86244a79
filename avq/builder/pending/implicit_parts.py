"""The parts of a bundle that DLA and TensorRT 10's own calibration build from."""

from __future__ import annotations

import json
from dataclasses import replace

from avq.builder.calibrate.commands import Calibration
from avq.builder.frontend.analyse import Understood
from avq.builder.lower.dla import lower_implicit
from avq.builder.pending.half import activation_peaks
from avq.builder.probe_set import ProbeSet
from avq.builder.request import Request
from avq.bundle import IMPLICIT, IMPLICIT_CACHE, IMPLICIT_PRECISIONS
from avq.types import QuantizationPlan


def with_ranges(
    request: Request,
    understood: Understood,
    plan: QuantizationPlan,
    calibration: Calibration,
    probe_set: ProbeSet,
) -> QuantizationPlan:
    """``plan`` with a range for every float tensor, when the recipe asks for DLA.

    From the counted pictures; tensors that are not counted (shapes, heads) take their peak on the held-out ones.
    """
    if not request.recipe.dla:
        return plan
    model = understood.model
    tensors = [prepared.tensor for prepared in probe_set.inputs]
    peaks = activation_peaks(model.proto, model.view, tensors, request.reference)
    ranges = {name: (-peak, peak) for name, peak in peaks.items()}
    counted = calibration.collect(())
    for name in (name for name in counted.tensors if name in ranges):
        histogram = counted.range(name, "minmax")
        ranges[name] = (histogram.low, histogram.high)
    return replace(plan, ranges=ranges)


def implicit_parts(request: Request, understood: Understood, plan: QuantizationPlan) -> dict[str, bytes]:
    """Three parts, by name; none unless the recipe asks for DLA."""
    if not request.recipe.dla:
        return {}
    written = lower_implicit(understood.model.proto, plan)
    return {
        IMPLICIT: written.model,
        IMPLICIT_CACHE: written.cache,
        IMPLICIT_PRECISIONS: json.dumps(dict(written.precisions), sort_keys=True).encode(),
    }
