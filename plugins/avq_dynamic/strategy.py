"""Plans of ``dynamic``: choice of the products, and comparison with float and static plans."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from avq import Workbench
from avq.errors import RequestError
from avq.toolbox import Placement, Ranging, assemble, int8_mac_share, place, wanted_statistics, weight_point
from avq.types import CALIBRATORS, Edge, GraphView, MeasuredPlan, NodePrecision, QuantizationPlan, QuantPoint

_KINDS = {
    "weights": "product with weights, activation scale computed at run time",
    "attention": "product of two activations, both scales computed at run time",
    "convolutions": "convolution, activation scale computed at run time",
}


def kind_of(graph: GraphView, placement: Placement) -> str:
    """Return "weights", "attention" or "convolutions"; '' for a product that no integer kernel computes."""
    node = graph.node(placement.node)
    if node.op in ("Conv", "ConvTranspose"):
        return "convolutions"
    if node.op == "Gemm" and not _plain_gemm(node.attributes, placement):
        return ""
    if placement.weight is None:
        return "attention"
    weight = graph.constants[placement.weight.tensor]
    return "weights" if placement.weight.input_index == 1 and weight.ndim >= 2 else ""


def _plain_gemm(attributes: Mapping[str, object], placement: Placement) -> bool:
    transposed = attributes.get("transA", 0) or (placement.weight is None and attributes.get("transB", 0))
    return not transposed and attributes.get("beta", 1.0) == 1.0


def dynamic_point(edge: Edge) -> QuantPoint:
    """Return an unsigned point whose scale and zero point are computed per picture; the stored ones are unused."""
    return QuantPoint(
        edge, np.asarray(1.0, np.float32), np.asarray(0, np.int64), signed=False, mode="dynamic"
    )


def dynamic_plan(
    graph: GraphView,
    chosen: Sequence[Placement],
    precisions: Mapping[str, NodePrecision],
    *,
    owner: tuple[str, str],
) -> QuantizationPlan:
    """Return the plan with ``chosen`` in INT8: dynamic activations, weights by their largest magnitude."""
    points = [dynamic_point(edge) for edge in dict.fromkeys(e for p in chosen for e in p.activations)]
    points += [
        weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis)
        for p in chosen
        if p.weight is not None
    ]
    return QuantizationPlan(
        graph_digest=graph.digest,
        points=tuple(sorted(points, key=lambda point: point.edge)),
        precisions=precisions,
        owner=owner[0],
        owner_version=owner[1],
    )


def precisions(
    graph: GraphView,
    placements: Sequence[Placement],
    kinds: Collection[str],
    keep_float: Mapping[str, str],
    why_not: Mapping[str, str],
) -> dict[str, NodePrecision]:
    """Return the precision of every weighted operator with its reason."""
    result = {node: NodePrecision("fp32", reason) for node, reason in keep_float.items()}
    for placement in placements:
        kind = kind_of(graph, placement)
        if kind in kinds:
            result[placement.node] = NodePrecision("int8", _KINDS[kind])
        else:
            reason = why_not.get(kind, "no integer kernel computes this form of the product")
            result[placement.node] = NodePrecision("fp32", reason)
    return result


_NO_DYNAMIC = "the target has no DynamicQuantizeLinear: every scale must be a constant of the engine"
_WHY_FLOAT = {"auto": "measured better in float", "float": "float by option attention=float", "int8": ""}
_LOST, _SHIFT, _SQNR_DB = 0.01, 0.02, 20.0  # the gate's own limits


class DynamicOptions(BaseModel):
    """Options of ``dynamic``."""

    model_config = ConfigDict(extra="forbid")

    attention: Literal["auto", "int8", "float"] = Field(
        "auto", description="products of two activations in INT8, float, or whichever is measured faster"
    )
    convolutions: Literal["float", "int8"] = Field(
        "float", description="convolutions in INT8; no CPU engine was measured to gain from it"
    )
    compare: bool = Field(True, description="measure static scales on the same operators, for the report")


@dataclass(frozen=True)
class _Tried:
    name: str
    plan: QuantizationPlan
    served: MeasuredPlan | None


class DynamicQuantizer:
    """The strategy ``dynamic``."""

    name = "dynamic"
    version = "1"
    options = DynamicOptions
    refused_targets: Mapping[str, str] = MappingProxyType(
        {"tensorrt": _NO_DYNAMIC, "tensorrt-rtx": _NO_DYNAMIC}
    )

    def plan(self, graph: GraphView, bench: Workbench, options: DynamicOptions) -> QuantizationPlan:
        if bench.symmetric_only:
            raise RequestError(
                "strategy 'dynamic' does not support targets with constant scales",
                seen=_NO_DYNAMIC,
                fix="--strategy static or mixed",
            )
        placements = place(graph, bench.keep_float)
        plans = self._plans(graph, bench, placements, options)
        if not any(plan.points for plan in plans.values()):
            bench.conclude("no matrix product that dynamic can quantize: the bundle has the float model")
            return next(iter(plans.values()))
        rivals = {"float": QuantizationPlan(graph.digest, owner=self.name, owner_version=self.version)}
        if options.compare:
            rivals["static, same operators"] = self._static(
                graph, bench, placements, list(plans.values())[-1]
            )
        named = {**rivals, **plans}
        tried = [
            _Tried(*entry, s) for entry, s in zip(named.items(), bench.serve([*named.values()]), strict=True)
        ]
        best = _best([t for t in tried if t.name in plans])
        bench.note("dynamic: compared with float and static", [_row(graph, t, t is best) for t in tried])
        bench.conclude(_conclusion(best, tried))
        return best.plan

    def _plans(
        self, graph: GraphView, bench: Workbench, placements: Sequence[Placement], options: DynamicOptions
    ) -> dict[str, QuantizationPlan]:
        """Return the dynamic plans by name; the one with most operators in INT8 comes last."""
        base = {"weights", *(["convolutions"] if options.convolutions == "int8" else [])}
        kinds = {"dynamic": base} if options.attention != "int8" else {}
        has_attention = any(kind_of(graph, p) == "attention" for p in placements)
        if options.attention == "int8" or (options.attention == "auto" and has_attention):
            kinds["dynamic, attention too"] = base | {"attention"}
        why_not = {
            "convolutions": "convolution: no gain from run-time scales was measured (option convolutions)",
            "attention": f"product of two activations: {_WHY_FLOAT[options.attention]}",
        }
        return {
            name: dynamic_plan(
                graph,
                [p for p in placements if kind_of(graph, p) in chosen],
                precisions(graph, placements, chosen, bench.keep_float, why_not),
                owner=(self.name, self.version),
            )
            for name, chosen in kinds.items()
        }

    def _static(
        self, graph: GraphView, bench: Workbench, placements: Sequence[Placement], plan: QuantizationPlan
    ) -> QuantizationPlan:
        """Return a plan with calibrated scales on the operators of ``plan``, by the most accurate calibrator."""
        chosen = [p for p in placements if plan.precision_of(p.node).precision == "int8"]
        stats = bench.collect(wanted_statistics(graph, chosen))
        tried = [
            assemble(graph, chosen, stats, Ranging(method), plan.precisions, owner=(self.name, self.version))
            for method in CALIBRATORS
        ]
        return min(tried, key=lambda static: bench.error(static).badness)


def _best(tried: Sequence[_Tried]) -> _Tried:
    """Return the fastest inside the gate's limits, else the most accurate; the first when no engine runs any."""
    run = [(t, t.served) for t in tried if t.served is not None]
    if not run:
        return tried[0]
    inside = [(t, s) for t, s in run if _inside(s)]
    if inside:
        return min(inside, key=lambda pair: pair[1].latency.ratio)[0]
    return min(run, key=lambda pair: pair[1].score.badness)[0]


def _inside(served: MeasuredPlan) -> bool:
    fidelity = served.score.fidelity
    if fidelity is None:
        return min(served.score.sqnr_db.values(), default=0.0) >= _SQNR_DB
    return fidelity.lost <= _LOST and abs(fidelity.confidence_shift) <= _SHIFT


def _row(graph: GraphView, tried: _Tried, chosen: bool) -> dict[str, object]:
    share = round(100 * int8_mac_share(graph, tried.plan), 1)
    row: dict[str, object] = {"plan": tried.name, "INT8 %": share, "chosen": chosen}
    served = tried.served
    if served is None:
        return {**row, "engine": "none matches the reference"}
    fidelity, latency = served.score.fidelity, served.latency
    return {
        **row,
        "engine": served.engine,
        "lost boxes %": round(100 * fidelity.lost, 2) if fidelity else "-",
        "worst SQNR dB": round(min(served.score.sqnr_db.values(), default=float("nan")), 1),
        "p50 ms": round(latency.p50_ms, 3),
        "time / float": f"{latency.ratio:.3f} [{latency.ratio_low:.3f}, {latency.ratio_high:.3f}]",
    }


def _conclusion(best: _Tried, tried: Sequence[_Tried]) -> str:
    if best.served is None:
        return "no engine here reproduces the reference outputs with activations quantized at run time"
    static = next((t.served for t in tried if t.name.startswith("static") and t.served is not None), None)
    comparison = (
        "" if static is None else f", static scales on the same operators {static.latency.ratio:.2f}x"
    )
    return f"dynamic takes {best.served.latency.ratio:.2f}x the time of the fastest float engine{comparison}"
