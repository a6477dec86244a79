"""What one choice of ``static`` means for every operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, Ranging, WeightMethod, wanted_statistics
from avq.toolbox import assemble as assemble_plan
from avq.types import AnyArray, Calibrator, GraphView, NodePrecision, QuantizationPlan

OWNER = ("static", "2")


@dataclass(frozen=True)
class Choice:
    """One way to fill in a static plan.

    Attributes:
        calibrator, percentile: how ranges are chosen.
        symmetric: signed grids around zero, or unsigned ones with a zero point.
        bits, weights: of weights, and how their scales are chosen.
        float_kinds: kinds of operators left float.
    """

    calibrator: Calibrator
    percentile: float
    symmetric: bool
    bits: int = 8
    weights: WeightMethod = "auto"
    float_kinds: tuple[str, ...] = ()

    @property
    def ranges(self) -> str:
        """The calibrator in words."""
        return f"percentile {self.percentile:g}" if self.calibrator == "percentile" else self.calibrator


@dataclass(frozen=True)
class Network:
    """A float network with what is known of its activations.

    Attributes:
        graph: what weights and biases are taken from.
        bench: sums and counts of this network.
        placements: operators that can run in integers.
        stats: counts of every tensor they read.
        overrides: where ``graph`` differs from the float graph that was given.
    """

    graph: GraphView
    bench: Workbench
    placements: Sequence[Placement]
    stats: CalibrationStats
    overrides: Mapping[str, AnyArray] = field(default_factory=dict)

    def plan(self, choice: Choice) -> QuantizationPlan:
        """The plan that follows from ``choice``; the same inputs give the same digest."""
        chosen = [p for p in self.placements if p.kind not in choice.float_kinds]
        ranging = Ranging(
            choice.calibrator,
            choice.percentile,
            choice.symmetric,
            tied=self.bench.symmetric_only,
            weight_bits=choice.bits,
            weights=choice.weights,
        )
        plan = assemble_plan(self.graph, chosen, self.stats, ranging, self._precisions(choice), owner=OWNER)
        return replace(plan, overrides=dict(self.overrides))

    def with_constants(self, overrides: Mapping[str, AnyArray]) -> Network:
        """The same network with constants replaced, counted again on the same pictures."""
        graph = replace(self.graph, constants={**self.graph.constants, **overrides})
        bench = self.bench.adjusted(overrides)
        stats = bench.collect(wanted_statistics(graph, self.placements))
        return Network(graph, bench, self.placements, stats, {**self.overrides, **overrides})

    def _precisions(self, choice: Choice) -> dict[str, NodePrecision]:
        precisions = {node: NodePrecision("fp32", reason) for node, reason in self.bench.keep_float.items()}
        few = f", weights of {choice.bits} bits" if choice.bits < 8 else ""
        for placement in self.placements:
            if placement.kind in choice.float_kinds:
                precisions[placement.node] = NodePrecision("fp32", f"{placement.kind}: left float")
            else:
                reason = f"{placement.kind}, weighted operator{few}"
                precisions[placement.node] = NodePrecision("int8", reason)
        return precisions
