"""Weight groups, and plans for one width per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, Ranging, assemble, dequantize, quantize, weight_point
from avq.types import GraphView, NodePrecision, QuantizationPlan, QuantPoint
from avq_lowbit.corrections import Corrections

#: Widths of the walk, first to last.
WIDTHS = (8, 6, 4, 3, 2, 1)
#: Widths on a target without packed weights.
NATIVE_WIDTHS = (8, 4)
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Group:
    """One weight tensor and its readers.

    Attributes:
        name: name of its first operator.
        kind: kind of that operator.
        tensor: name of the weights.
        placements: operators that read them.
        count: number of weights.
        scales: number of scales: one per channel, or one.
    """

    name: str
    kind: str
    tensor: str
    placements: tuple[Placement, ...]
    count: int
    scales: int

    def bytes_at(self, bits: int) -> int:
        """Return the bytes in the file: packed weights and scales; 32 bits are float weights without a scale."""
        return -(-self.count * bits // 8) + (0 if bits == 32 else _SCALE_BYTES * self.scales)


def weight_groups(graph: GraphView, placements: Sequence[Placement]) -> tuple[Group, ...]:
    """Return one group per quantizable weight tensor, in graph order."""
    readers: dict[str, list[Placement]] = {}
    for placement in placements:
        if placement.weight is not None:
            readers.setdefault(placement.weight.tensor, []).append(placement)
    return tuple(_group(graph, tensor, group) for tensor, group in readers.items())


def _group(graph: GraphView, tensor: str, readers: Sequence[Placement]) -> Group:
    shape, axis = graph.constants[tensor].shape, readers[0].weight_axis
    scales = 1 if axis is None else shape[axis]
    first = readers[0]
    return Group(first.node, first.kind, tensor, tuple(readers), graph.constants[tensor].size, scales)


def other_bytes(graph: GraphView, groups: Sequence[Group]) -> int:
    """Return the bytes of all other constants: biases, the decoded head and the rest of the graph."""
    inside = {group.tensor for group in groups}
    return sum(array.nbytes for name, array in graph.constants.items() if name not in inside)


#: Width of weights that stay float.
FLOAT = 32
Bits = tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """Precision of activations.

    Attributes:
        int8: True for INT8 where a plain integer kernel reads them, with depthwise ones float; False for all float.
        stats: their histograms; None when all are float.
        ranging: settings of their grids.
    """

    int8: bool
    stats: CalibrationStats | None = None
    ranging: Ranging = field(default_factory=lambda: Ranging("mse"))


@dataclass
class Plans:
    """Plans over one graph that differ only in the widths of weights.

    Attributes:
        native: the target has no packed weights: INT8 anywhere, INT4 for weights of matrix products with float data,
            in even numbers. Otherwise any group may have any width, packed in the file.
        corrections: applied to every plan, unless None.
        owner: name and version of the strategy.
    """

    graph: GraphView
    bench: Workbench
    groups: Sequence[Group]
    data: Data
    native: bool
    corrections: Corrections | None
    owner: tuple[str, str]
    _points: dict[tuple[str, int], QuantPoint] = field(default_factory=dict)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the walk, first to last."""
        return NATIVE_WIDTHS if self.native else WIDTHS

    def allowed(self, group: Group, bits: int) -> bool:
        return not self.native or bits == 8 or (group.kind == "matmul" and group.count % 2 == 0)

    def plan(self, bits: Bits, reasons: Mapping[str, str] | None = None) -> QuantizationPlan:
        """Return the corrected plan with one width per group; FLOAT keeps a group and its data float."""
        chosen = [(p, b) for g, b in zip(self.groups, bits, strict=True) if b != FLOAT for p in g.placements]
        base = self._activations([p for p, b in chosen if self.integer_data(p, b)])
        points = sorted([*base.points, *(self._weight(p, b) for p, b in chosen)], key=lambda p: p.edge)
        plan = replace(base, points=tuple(points), precisions=self._precisions(bits, reasons or {}))
        return plan if self.corrections is None else self.corrections.corrected(plan)

    def bytes_at(self, bits: Bits) -> int:
        """Return the bytes of all constants in the file: weights, scales and float constants."""
        weights = sum(g.bytes_at(b) for g, b in zip(self.groups, bits, strict=True))
        return weights + other_bytes(self.graph, self.groups)

    def integer_data(self, placement: Placement, bits: int) -> bool:
        """Return True when a group's data are INT8, with weights of ``bits`` bits."""
        return self.data.int8 and placement.kind != "depthwise" and not (self.native and bits < 8)

    def squared_error(self, group: Group, bits: int) -> float:
        """Return the squared error of the group's weights, rounded to nearest."""
        weight, point = self.graph.constants[group.tensor], self._weight(group.placements[0], bits)
        return float(((dequantize(quantize(weight, point), point) - weight).astype("f8") ** 2).sum())

    def _weight(self, placement: Placement, bits: int) -> QuantPoint:
        assert placement.weight is not None
        edge = placement.weight
        key = (str(edge), bits)
        if key not in self._points:
            array = self.graph.constants[edge.tensor]
            self._points[key] = weight_point(edge, array, placement.weight_axis, bits=bits)
        point = replace(self._points[key], packed=not self.native)
        return point if self.integer_data(placement, bits) else replace(point, mode="weight-only")

    def _activations(self, chosen: Sequence[Placement]) -> QuantizationPlan:
        """Return a plan with activation points only."""
        if not chosen or self.data.stats is None:
            return QuantizationPlan(self.graph.digest, owner=self.owner[0], owner_version=self.owner[1])
        plan = assemble(self.graph, chosen, self.data.stats, self.data.ranging, {}, owner=self.owner)
        weights = {p.weight for p in chosen}
        return replace(plan, points=tuple(p for p in plan.points if p.edge not in weights))

    def _precisions(self, bits: Bits, reasons: Mapping[str, str]) -> dict[str, NodePrecision]:
        precisions = {node: NodePrecision("fp32", why) for node, why in self.bench.keep_float.items()}
        for group, width in zip(self.groups, bits, strict=True):
            for placement in group.placements:
                integers = width != FLOAT and self.integer_data(placement, width)
                reason = reasons.get(group.name, f"{group.kind}: weights in {width} bits")
                precisions[placement.node] = NodePrecision("int8" if integers else "fp32", reason)
        return precisions
