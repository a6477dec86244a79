"""From one width per group to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, Ranging, assemble
from avq.types import AnyArray, GraphView, NodePrecision, PlanScore, QuantizationPlan, QuantPoint
from avq_lowbit.grids import fitted_point
from avq_lowbit.groups import Group, other_bytes

#: Weights left as they are.
FLOAT = 32
Bits = tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """How activations run.

    Attributes:
        int8: in INT8 where a plain integer kernel reads them; depthwise ones stay float. Else all float.
        stats: their histograms; None when all float.
        ranging: how those become grids.
    """

    int8: bool
    stats: CalibrationStats | None = None
    ranging: Ranging = field(default_factory=lambda: Ranging("mse"))


@dataclass
class Plans:
    """Plans over one graph that differ in the widths of weights only.

    Attributes:
        packed: widths below 8 bits are packed in the file; otherwise stored as the target's own integers.
        owner: name and version of the strategy.
    """

    graph: GraphView
    bench: Workbench
    groups: Sequence[Group]
    data: Data
    packed: bool
    owner: tuple[str, str]
    _points: dict[tuple[str, int], QuantPoint] = field(default_factory=dict)

    def plan(self, bits: Bits, reasons: Mapping[str, str] | None = None) -> QuantizationPlan:
        """The plan with the groups' weights in ``bits``; FLOAT leaves a group float, its data too."""
        wide = {g.name: b for g, b in zip(self.groups, bits, strict=True)}
        inside = [p for g in self.groups if wide[g.name] != FLOAT for p in g.placements]
        weights = [
            self._weight(p, wide[g.name]) for g in self.groups if wide[g.name] != FLOAT for p in g.placements
        ]
        base = self._activations([p for p in inside if self.integer_data(p)])
        points = sorted([*base.points, *weights], key=lambda point: point.edge)
        return replace(base, points=tuple(points), precisions=self._precisions(wide, reasons or {}))

    def error(self, bits: Bits, pictures: int | None = None) -> PlanScore:
        return self.bench.error(self.plan(bits), pictures=pictures)

    def bytes_at(self, bits: Bits) -> int:
        """All constants of the file: weights, their scales, and what stays float."""
        weights = sum(g.bytes_at(b) for g, b in zip(self.groups, bits, strict=True))
        return weights + other_bytes(self.graph, self.groups)

    def integer_data(self, placement: Placement) -> bool:
        return self.data.int8 and placement.kind != "depthwise"

    def weight_point(self, group: Group, bits: int) -> QuantPoint:
        return self._weight(group.placements[0], bits)

    def array(self, group: Group) -> AnyArray:
        return self.graph.constants[group.tensor]

    def _weight(self, placement: Placement, bits: int) -> QuantPoint:
        assert placement.weight is not None
        edge = placement.weight
        key = (str(edge), bits)
        if key not in self._points:
            array = self.graph.constants[edge.tensor]
            self._points[key] = fitted_point(edge, array, placement.weight_axis, bits)
        point = replace(self._points[key], packed=self.packed)
        return point if self.integer_data(placement) else replace(point, mode="weight-only")

    def _activations(self, chosen: Sequence[Placement]) -> QuantizationPlan:
        """The plan's activation points, without any of weights."""
        if not chosen or self.data.stats is None:
            return QuantizationPlan(self.graph.digest, owner=self.owner[0], owner_version=self.owner[1])
        plan = assemble(self.graph, chosen, self.data.stats, self.data.ranging, {}, owner=self.owner)
        weights = {p.weight for p in chosen}
        return replace(plan, points=tuple(p for p in plan.points if p.edge not in weights))

    def _precisions(self, wide: Mapping[str, int], reasons: Mapping[str, str]) -> dict[str, NodePrecision]:
        precisions = {node: NodePrecision("fp32", why) for node, why in self.bench.keep_float.items()}
        for group in self.groups:
            for placement in group.placements:
                integers = self.integer_data(placement) and wide[group.name] != FLOAT
                reason = reasons.get(group.name, f"{group.kind}: weights in {wide[group.name]} bits")
                precisions[placement.node] = NodePrecision("int8" if integers else "fp32", reason)
        return precisions
