"""Plans of ``qat``: import unchanged, refuse with the reason, or change by option and measure the effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from avq import Workbench
from avq.errors import PlanError
from avq.toolbox import decoding_nodes, place
from avq.types import (
    Edge,
    Finding,
    GraphView,
    ImportedQuantization,
    NodePrecision,
    PlanScore,
    QuantizationPlan,
    QuantPoint,
)

# Changes to an imported quantization that options request.

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


def resymmetrized(points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """Return the points with every grid signed around zero; its range covers the old one.

    An unsigned grid with its zero in the middle keeps its scale; only its integers shift.
    """
    return [_around_zero(point) for point in points]


def _around_zero(point: QuantPoint) -> QuantPoint:
    if point.symmetric:
        return point
    zero = np.zeros_like(point.zero_point)
    if not point.signed and not point.narrow and np.all(point.zero_point == 1 << (point.bits - 1)):
        return replace(point, signed=True, zero_point=zero)
    reach = np.maximum(point.zero_point - point.qmin, point.qmax - point.zero_point)
    scale = point.scale.astype(np.float64) * reach / ((1 << (point.bits - 1)) - 1)
    return replace(point, signed=True, zero_point=zero, scale=scale.astype(np.float32))


def per_tensor(graph: GraphView, points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """Return the points with one scale per activation tensor, which covers the scales of all channels."""
    return [p if graph.is_constant(p.edge.tensor) or not p.scale.ndim else _merged(p) for p in points]


def _merged(point: QuantPoint) -> QuantPoint:
    low = float(np.min((point.qmin - point.zero_point) * point.scale.astype(np.float64)))
    high = float(np.max((point.qmax - point.zero_point) * point.scale.astype(np.float64)))
    scale = (high - low) / (point.qmax - point.qmin)
    zero_point = 0 if point.symmetric else round(point.qmin - low / scale)
    if point.symmetric:
        scale = float(np.max(point.scale))
    return replace(
        point, axis=None, scale=np.asarray(scale, np.float32), zero_point=np.asarray(zero_point, np.int64)
    )


def with_raised_scales(points: Sequence[QuantPoint]) -> list[QuantPoint]:
    """Return the points with no scale below the smallest normal float32."""
    return [
        replace(p, scale=np.asarray(np.maximum(p.scale, _SMALLEST_NORMAL), np.float32))
        if np.any(p.scale < _SMALLEST_NORMAL)
        else p
        for p in points
    ]


def left_float(graph: GraphView, points: Sequence[QuantPoint], nodes: Collection[str]) -> list[QuantPoint]:
    """Return the points without inputs and outputs of ``nodes``; other readers of these tensors keep their grids."""
    written = {output for name in nodes for output in graph.node(name).outputs}
    kept: list[QuantPoint] = []
    for point in points:
        edge = point.edge
        readers = graph.consumers(edge.tensor)
        if edge.tensor in written or edge.node in nodes:
            continue
        if not edge.node and any(node.name in nodes for node, _ in readers):
            others = [(node, index) for node, index in readers if node.name not in nodes]
            kept += [replace(point, edge=Edge(edge.tensor, n.name, i)) for n, i in others]
        else:
            kept.append(point)
    return kept


#: Pitfalls that targets with signed grids around zero refuse -> the option that resolves each.
_SYMMETRIC_ONLY = {"AVQ-Q02": "resymmetrize", "AVQ-Q03": "resymmetrize", "AVQ-Q06": "per_tensor"}
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Fix = tuple[str, Callable[[Sequence[QuantPoint]], list[QuantPoint]]]


class QatOptions(BaseModel):
    """Options of ``qat``: each resolves one kind of pitfall; without any the import equals its source."""

    model_config = ConfigDict(extra="forbid")

    resymmetrize: bool = Field(False, description="make every grid signed around zero, as TensorRT requires")
    per_tensor: bool = Field(False, description="merge activation scales per channel into one")
    raise_scales: bool = Field(False, description="raise denormal scales to the smallest normal float32")
    float_depthwise: bool = Field(False, description="keep depthwise convolutions float")
    float_heads: bool = Field(False, description="keep the head and decoding operators float")
    encodings: Path | None = Field(
        None, description="quantization of a float model: TensorRT calibration cache or AIMET encodings"
    )
    drop: bool = Field(False, description="keep tensors float whose quantization cannot be imported")


class QatQuantizer:
    """The strategy ``qat``."""

    name = "qat"
    version = "1"
    options = QatOptions
    imports = True

    def plan(self, graph: GraphView, bench: Workbench, options: QatOptions) -> QuantizationPlan:
        foreign = _required(bench.foreign)
        _show(bench, foreign)
        _refuse(foreign, bench, options)
        if foreign.errors:
            codes = ", ".join(finding.code for finding in foreign.errors)
            bench.conclude(
                f"drop=true kept tensors float that cannot be imported ({codes}): the plan differs from its source"
            )
        plan = self._plan(graph, foreign)
        for name, fix in _requested(graph, bench, options):
            plan = _with_fix(bench, plan, name, fix)
        return plan

    def _plan(self, graph: GraphView, foreign: ImportedQuantization) -> QuantizationPlan:
        plan = QuantizationPlan(
            graph_digest=graph.digest,
            points=foreign.points,
            overrides=foreign.overrides,
            owner=self.name,
            owner_version=self.version,
        )
        return replace(plan, precisions=_precisions(graph, plan, foreign.dialect))


def _required(foreign: ImportedQuantization | None) -> ImportedQuantization:
    if foreign is not None and foreign.errors and not foreign.points:
        raise _refusal(f"nothing in this {foreign.dialect} file can be imported", foreign.errors)
    if foreign is None or not foreign.points:
        empty = f"the {foreign.dialect} file has no grid" if foreign else ""
        seen = "; ".join(f.what for f in foreign.findings) or empty if foreign else ""
        raise PlanError(
            "AVQ-Q01: the model has no quantization to import",
            seen=seen or "no QuantizeLinear, Quant or FakeQuantize in the graph",
            fix="--strategy static quantizes a float model; --option encodings=FILE imports scales from a file",
        )
    return foreign


def _show(bench: Workbench, foreign: ImportedQuantization) -> None:
    rows = [_row(finding) for finding in foreign.findings]
    if rows:
        bench.note(f"qat: findings in this {foreign.dialect} file", rows)


def _row(finding: Finding) -> dict[str, object]:
    return {
        "id": finding.code,
        "severity": finding.severity,
        "what": finding.what,
        "seen": finding.seen,
        "do": finding.fix,
    }


def _refuse(foreign: ImportedQuantization, bench: Workbench, options: QatOptions) -> None:
    """Raise PlanError for findings that neither a plan can express, nor the target run, nor an option resolve."""
    if foreign.errors and not options.drop:
        raise _refusal("the quantization of this file cannot be imported", foreign.errors)
    if not bench.symmetric_only:
        return
    unresolved = tuple(
        finding
        for finding in foreign.findings
        if finding.code in _SYMMETRIC_ONLY and not getattr(options, _SYMMETRIC_ONLY[finding.code])
    )
    if unresolved:
        raise _refusal(
            "the target takes signed grids around zero only, and one scale per activation", unresolved
        )


def _refusal(what: str, findings: Sequence[Finding]) -> PlanError:
    first = findings[0]
    return PlanError(
        f"{first.code}: {what}: {first.what}",
        seen="; ".join(f"{f.code} {f.seen}" for f in findings),
        fix="; ".join(dict.fromkeys(f.fix for f in findings)),
    )


def _requested(graph: GraphView, bench: Workbench, options: QatOptions) -> list[Fix]:
    """Return the changes that options request, in the order in which they build on each other."""
    heads = {*bench.keep_float, *(node.name for node in decoding_nodes(graph))}
    depthwise = {p.node for p in place(graph) if p.kind == "depthwise"}
    every: tuple[Fix, ...] = (
        ("raise_scales", with_raised_scales),
        ("float_heads", lambda points: left_float(graph, points, heads)),
        ("float_depthwise", lambda points: left_float(graph, points, depthwise)),
        ("per_tensor", lambda points: per_tensor(graph, points)),
        ("resymmetrize", resymmetrized),
    )
    return [fix for fix in every if getattr(options, fix[0])]


def _with_fix(
    bench: Workbench,
    plan: QuantizationPlan,
    name: str,
    fix: Callable[[Sequence[QuantPoint]], list[QuantPoint]],
) -> QuantizationPlan:
    """Return the plan after one change; measure and report the effect on accuracy."""
    points = tuple(fix(plan.points))
    if len(points) == len(plan.points) and all(a is b for a, b in zip(points, plan.points, strict=True)):
        bench.conclude(f"{name}=true changed nothing")
        return plan
    changed = replace(plan, points=points)
    before, after = bench.error(plan), bench.error(changed)
    bench.note(f"qat: effect of {name}=true", [_score("as imported", before), _score(name, after)])
    bench.conclude(f"{name}=true changed the import: {_loss(before)} before, {_loss(after)} after")
    return changed


def _score(what: str, score: PlanScore) -> dict[str, object]:
    fidelity = score.fidelity
    return {
        "plan": what,
        "lost boxes %": round(100 * fidelity.lost, 2) if fidelity else "-",
        "confidence shift": round(fidelity.confidence_shift, 4) if fidelity else "-",
        "worst SQNR dB": round(min(score.sqnr_db.values(), default=float("nan")), 1),
    }


def _loss(score: PlanScore) -> str:
    noise = f"{min(score.sqnr_db.values(), default=0.0):.1f} dB at the worst output"
    if score.fidelity is None:
        return noise
    return f"{100 * score.fidelity.lost:.2f} % of the boxes lost and {noise}"


def _precisions(graph: GraphView, plan: QuantizationPlan, dialect: str) -> dict[str, NodePrecision]:
    chosen = {}
    for node in graph.nodes:
        if node.op not in _WEIGHTED:
            continue
        points = [plan.point_for(node.inputs[i], node.name, i) for i in (0, 1)]
        whole = all(point is not None for point in points)
        reason = f"quantized in the file ({dialect})" if whole else f"not quantized in the file ({dialect})"
        chosen[node.name] = NodePrecision("int8" if whole else "fp32", reason)
    return chosen
