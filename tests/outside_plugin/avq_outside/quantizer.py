"""A strategy: every weighted operator in eight bits, ranges from the largest values seen."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict, Field

from avq import Workbench
from avq.toolbox import activation_point, place, weight_point
from avq.types import GraphView, NodePrecision, QuantizationPlan, QuantPoint, Range, StatRequest


class MarginOptions(BaseModel):
    """Options of ``outside-margin``; the host checks them before the first picture is read."""

    model_config = ConfigDict(extra="forbid")

    margin: float = Field(
        1.0, gt=0.5, le=2.0, description="clipping range as a multiple of the largest value"
    )
    encodings: Path | None = Field(
        None, description="encodings of the model, read instead of the calibration pictures' ranges"
    )
    kinds: tuple[str, ...] = Field(
        ("dense", "depthwise", "grouped", "matmul"), description="kinds of operators to quantize"
    )


class MarginQuantizer:
    """Min-max ranges, widened by a margin; an ImportingQuantizer, and a LimitedQuantizer."""

    name = "outside-margin"
    version = "2.1.0"
    options = MarginOptions
    imports = True
    refused_targets = MappingProxyType({"tensorrt-rtx": "its margin was never measured there"})

    def plan(self, graph: GraphView, bench: Workbench, options: MarginOptions) -> QuantizationPlan:
        placements = [p for p in place(graph, bench.keep_float) if p.kind in options.kinds]
        edges = list(dict.fromkeys(edge for p in placements for edge in p.activations))
        stats = bench.collect([StatRequest(tensor) for tensor in sorted({e.tensor for e in edges})])
        points: list[QuantPoint] = []
        given = {} if bench.foreign is None else {point.edge: point for point in bench.foreign.points}
        for edge in edges:
            if edge in given:
                points.append(given[edge])
                continue
            seen = stats.range(edge.tensor, "minmax", symmetric=bench.symmetric_only)
            clip = Range(seen.low * options.margin, seen.high * options.margin)
            points.append(activation_point(edge, clip, symmetric=bench.symmetric_only))
        points.extend(
            weight_point(p.weight, graph.constants[p.weight.tensor], p.weight_axis)
            for p in placements
            if p.weight is not None
        )
        precisions = {node: NodePrecision("fp32", why) for node, why in bench.keep_float.items()}
        precisions |= {p.node: NodePrecision("int8", f"{p.kind}, weighted operator") for p in placements}
        bench.note("outside-margin", [{"operators": len(placements), "margin": options.margin}])
        return QuantizationPlan(
            graph_digest=graph.digest,
            points=tuple(points),
            precisions=precisions,
            owner=self.name,
            owner_version=self.version,
        )
