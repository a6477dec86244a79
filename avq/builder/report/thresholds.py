"""Section with histograms of a few tensors and the threshold of every method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.lower.grid import real_range
from avq.builder.report.summary import ReportData
from avq.errors import AvqError
from avq.render import Html, Mark, Tone, columns, log_histogram, section
from avq.types import CALIBRATORS, Calibrator, GraphView, GroupRow, QuantizationPlan

_SHOWN = 4
_TONES: dict[Calibrator, Tone] = {"entropy": "good", "mse": "warn", "percentile": "bad", "minmax": "plain"}


def thresholds(data: ReportData) -> list[Html]:
    """Return charts of the most sensitive groups' inputs, or of the tensors on which the methods differ most."""
    plan, stats = data.planned.plan, data.stats
    if stats is None or not plan.points:
        return []
    quantized = [p.edge.tensor for p in plan.points if p.edge.tensor in stats.tensors]
    sensitive = [row for row in data.planned.groups if row.sensitivity]
    names = (
        sensitive_tensors(data.context.analysis.model.view, sensitive, stats)
        if sensitive
        else contested_tensors(stats, dict.fromkeys(quantized))
    )
    charts = [chart for name in names[:_SHOWN] if (chart := _chart(name, stats, plan)) is not None]
    if not charts:
        return []
    which = (
        "Inputs of the groups that lose most in INT8."
        if sensitive
        else "The tensors on which the methods differ most."
    )
    lead = f"{which} Counts of |x| over the calibration pictures, on a logarithmic scale."
    return [section("Histograms and thresholds", columns(*charts), lead=lead)]


def sensitive_tensors(graph: GraphView, rows: Sequence[GroupRow], stats: HistogramStats) -> list[str]:
    """Return the inputs of the most sensitive groups, each tensor once."""
    ranked = sorted(rows, key=lambda row: -(row.sensitivity or 0.0))
    read = [name for row in ranked for name in graph.node(row.name).inputs]
    known = set(stats.tensors)
    return [name for name in dict.fromkeys(read) if name in known]


def contested_tensors(stats: HistogramStats, tensors: Sequence[str] | dict[str, None]) -> list[str]:
    """Sort tensors by the ratio of the widest threshold to the narrowest."""

    def spread(name: str) -> float:
        positive = [t for _, t in method_thresholds(stats, name) if t > 0]
        return max(positive) / min(positive) if positive else 0.0

    return sorted(tensors, key=lambda name: -spread(name))


def method_thresholds(stats: HistogramStats, tensor: str) -> list[tuple[Calibrator, float]]:
    """Return (method, t) of the symmetric range (-t, t); none for a tensor without usable counts."""
    try:
        return [(m, float(stats.range(tensor, m, symmetric=True).high)) for m in CALIBRATORS]
    except AvqError:
        return []


def _chart(tensor: str, stats: HistogramStats, plan: QuantizationPlan) -> Html | None:
    thresholds_by_method = method_thresholds(stats, tensor)
    if not thresholds_by_method:
        return None
    histogram = stats.histogram(tensor)
    largest = max(abs(histogram.minimum), abs(histogram.maximum))
    used = histogram.magnitude[: int(np.ceil(largest / histogram.width)) or 1]
    marks = [Mark(method, t, _TONES[method]) for method, t in thresholds_by_method]
    built = _as_built(tensor, plan)
    return log_histogram(used.tolist(), 0.0, largest, title=f"{tensor}{built}", marks=marks)


def _as_built(tensor: str, plan: QuantizationPlan) -> str:
    points = [p for p in plan.points if p.edge.tensor == tensor]
    if not points:
        return " (stays float)"
    low, high = real_range(points[0])
    return f" (as built {float(np.min(low)):.3g} to {float(np.max(high)):.3g})"
