"""Plans of precision maps, and random maps for the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from avq import CalibrationStats, Workbench
from avq.toolbox import Ranging, assemble
from avq.types import AnyArray, GraphView, NodePrecision, PlanScore, QuantizationPlan
from avq_mixed.groups import Group


@dataclass
class Maps:
    """Plans of precision maps over one graph, with one setting of ranges.

    Attributes:
        owner: name and version of the strategy.
    """

    graph: GraphView
    bench: Workbench
    groups: Sequence[Group]
    stats: CalibrationStats
    ranging: Ranging
    owner: tuple[str, str]
    reasons: dict[str, str] = field(default_factory=dict)

    def plan(self, int8: AnyArray) -> QuantizationPlan:
        """Return the plan of the map ``int8``, (groups,) bool: True runs in integers."""
        chosen = [p for g, inside in zip(self.groups, int8, strict=True) if inside for p in g.placements]
        return assemble(
            self.graph, chosen, self.stats, self.ranging, self._precisions(int8), owner=self.owner
        )

    def error(self, int8: AnyArray, pictures: int | None = None) -> PlanScore:
        return self.bench.error(self.plan(int8), pictures=pictures)

    def errors(self, int8_maps: Sequence[AnyArray], pictures: int | None = None) -> Sequence[PlanScore]:
        return self.bench.errors([self.plan(int8) for int8 in int8_maps], pictures=pictures)

    def all_int8(self) -> AnyArray:
        return np.ones(len(self.groups), bool)

    def all_float(self) -> AnyArray:
        return np.zeros(len(self.groups), bool)

    def without_kind(self, kind: str) -> AnyArray:
        return np.array([g.kind != kind for g in self.groups], bool)

    def _precisions(self, int8: AnyArray) -> dict[str, NodePrecision]:
        precisions = {node: NodePrecision("fp32", why) for node, why in self.bench.keep_float.items()}
        for group, inside in zip(self.groups, int8, strict=True):
            reason = self.reasons.get(group.name, f"{group.kind}, candidate map")
            for placement in group.placements:
                precisions[placement.node] = NodePrecision("int8" if inside else "fp32", reason)
        return precisions


def random_maps(groups: Sequence[Group], count: int, seed: int) -> list[AnyArray]:
    """Draw precision maps from nearly float to nearly INT8, in three alternating designs.

    Runs of neighbours, as in real plans; the same with depthwise convolutions float, as in good plans; and every
    group by itself, which gives the most boundaries.

    Returns:
        ``count`` maps, (groups,) bool each; the same seed gives the same maps.
    """
    rng = np.random.default_rng(seed)
    mixing = np.array([g.kind != "depthwise" for g in groups], bool)
    maps = []
    for index in range(count):
        share = (index + 0.5) / count
        longest = 1 if index % 3 == 2 else max(2, len(groups) // 6)
        run = int(rng.integers(1, longest + 1))
        blocks = rng.random(-(-len(groups) // run)) < share
        drawn = np.repeat(blocks, run)[: len(groups)]
        maps.append(drawn & mixing if index % 3 == 1 else drawn)
    return maps
