"""Top level of ``mixed``: ranges, sensitivities, costs, maps, measurements, choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from avq import Workbench
from avq.toolbox import Placement, Ranging, RangingOptions, macs_by_node, place, wanted_statistics
from avq.types import CALIBRATORS, F64, AnyArray, Calibrator, GraphView, QuantizationPlan
from avq_mixed.explain import front_figure, group_reasons, group_rows
from avq_mixed.fit import CostModel, Counted, Timing, count, fit
from avq_mixed.front import Point, choose, front, with_share
from avq_mixed.groups import Group, boundaries, fusion_groups
from avq_mixed.maps import Maps, random_maps
from avq_mixed.sensitivity import damages, measure
from avq_mixed.solve import Problem, candidates

# Least INT8 shares of further maps, for builds where memory or a later target matters more than time here.
_SHARES = (0.6, 0.92)
# Enough to measure every group in both precisions with neighbours of both.
_COUNTED_MAPS = 20
# Each call opens new float sessions; their deviations average out over several calls.
_MAPS_PER_CALL = 21
_PICTURES_PER_CALIBRATOR = 48
_NOTHING_RUNS = (
    "INT8 did not win: no engine here reproduces the reference outputs of a quantized plan of this model"
)


class MixedOptions(RangingOptions):
    """Options of ``mixed``."""

    pictures: int = Field(
        16, ge=1, description="pictures that rank the groups; finalists are measured on all"
    )
    probes: int = Field(
        120,
        ge=1,
        description="error measurements for sensitivities; larger networks are measured in runs of layers",
    )
    maps: int = Field(84, ge=6, le=200, description="random precision maps that the cost model is fitted to")
    seed: int = Field(7, ge=0, description="seed of the random maps: the same maps on every machine")
    steps: int = Field(6, ge=2, le=20, description="points of the predicted front that are built")
    least_int8: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="least share of the multiply-adds in INT8: for memory, or a later target; 0 lets float win",
    )


class MixedQuantizer:
    """The strategy ``mixed``."""

    name = "mixed"
    version = "1"
    options = MixedOptions

    def plan(self, graph: GraphView, bench: Workbench, options: MixedOptions) -> QuantizationPlan:
        placements = place(graph, bench.keep_float)
        maps = self.maps(graph, bench, placements, options)
        always = anchors(maps)
        quantized = [maps.plan(m) for m in always.values() if m.any()]
        if not any(served is not None for served in bench.serve(quantized)):
            bench.conclude(
                _NOTHING_RUNS if quantized else "INT8 did not win: nothing here can run in integers"
            )
            return maps.plan(maps.all_float())

        measured = measure(maps, options.pictures, options.probes)
        timed = self.timed(maps)
        drawn = random_maps(maps.groups, options.maps, options.seed)
        timed.count(drawn)
        cost = timed.learn([*always.values(), *drawn])
        problem = Problem(cost, damages(measured), mac_shares(maps.groups))
        # The best maps by a model exploit its errors: time those maps, fit again, and solve again.
        least = _least_of_groups(maps, options.least_int8)
        problem = replace(problem, cost=timed.learn(candidates(problem, options.steps, _SHARES, least)))
        points = _measure(maps, problem, {**always, **_solved(problem, options.steps, least)})
        allowed = with_share(points, options.least_int8)
        point, why = choose(allowed, budget_ms=bench.budget_ms, max_drop=bench.max_drop)

        kept = {id(p) for p in front(points)}
        rows = [{**p.row(), "front": id(p) in kept, "chosen": p is point} for p in _by_time(points)]
        bench.note("mixed: measured plans", rows)
        bench.plot(front_figure(points, point, bench.max_drop))
        bench.groups(group_rows(maps.groups, measured, problem, point.int8, timed.counted))
        bench.conclude(_conclusion(point, points, why))
        maps.reasons.update(group_reasons(maps.groups, problem, point.int8))
        return maps.plan(point.int8)

    def timed(self, maps: Maps) -> Timed:
        """Return the timer of this search's maps; benchmarks override it."""
        return Timed(maps)

    def maps(
        self, graph: GraphView, bench: Workbench, placements: Sequence[Placement], options: MixedOptions
    ) -> Maps:
        """Return groups and ranges, by the most accurate calibrator with depthwise convolutions float."""
        symmetric = options.symmetric(symmetric_only=bench.symmetric_only)
        groups = fusion_groups(graph, placements)
        stats = bench.collect(wanted_statistics(graph, placements))

        def with_calibrator(calibrator: Calibrator) -> Maps:
            ranging = Ranging(calibrator, options.percentile, symmetric, tied=bench.symmetric_only)
            return Maps(graph, bench, groups, stats, ranging, (self.name, self.version))

        if options.calibrator != "auto" or not groups:
            return with_calibrator("mse" if options.calibrator == "auto" else options.calibrator)
        tried = [with_calibrator(method) for method in CALIBRATORS]
        plans = [maps.plan(maps.without_kind("depthwise")) for maps in tried]
        scores = [score.badness for score in bench.errors(plans, pictures=_PICTURES_PER_CALIBRATOR)]
        bench.note(
            "mixed: calibrators, all but depthwise in INT8",
            [{"calibrator": m, "badness": round(b, 5)} for m, b in zip(CALIBRATORS, scores, strict=True)],
        )
        return tried[int(np.argmin(scores))]


def anchors(maps: Maps) -> dict[str, AnyArray]:
    """Return the maps that are always measured, quantized ones first."""
    named = {"all INT8": maps.all_int8(), "all but depthwise": maps.without_kind("depthwise")}
    return {**{name: m for name, m in _unlike(named).items() if m.any()}, "all float": maps.all_float()}


def _unlike(named: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Return the maps without duplicates under another name."""
    first: dict[bytes, str] = {}
    for name, int8 in named.items():
        first.setdefault(int8.tobytes(), name)
    return {name: named[name] for name in first.values()}


def _solved(problem: Problem, steps: int, least_share: float) -> dict[str, AnyArray]:
    maps = candidates(problem, steps, _SHARES, least_share)
    return {f"solved {i + 1}": m for i, m in enumerate(maps)}


def _least_of_groups(maps: Maps, least: float) -> float:
    """Convert a share of all multiply-adds to a share of the multiply-adds in groups."""
    everything, ours = sum(macs_by_node(maps.graph).values()), sum(g.macs for g in maps.groups)
    return min(1.0, least * everything / max(ours, 1))


def mac_shares(groups: Sequence[Group]) -> F64:
    """Return the share of each group in the multiply-adds of all groups, (groups,)."""
    macs = np.array([g.macs for g in groups], np.float64)
    shares: F64 = macs / max(float(macs.sum()), 1.0)
    return shares


class Timed:
    """Whole-network times of precision maps on the serving engine, and the cost model fitted to them.

    Attributes:
        counted: time of each group in context; None when the engine has no layer times.
        known: timings that the cost model is fitted to.
        cost: the latest cost model.
    """

    cost: CostModel

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.counted: Counted | None = None
        self._edges = boundaries(maps.graph, [p for g in maps.groups for p in g.placements])
        self.known: list[Timing] = []
        self._calls = 0

    def count(self, int8_maps: Sequence[AnyArray]) -> None:
        """Measure layer times of all-float, all-INT8 and some of these maps."""
        some = int8_maps[:: max(1, len(int8_maps) // _COUNTED_MAPS)]
        counted = [self.maps.all_float(), self.maps.all_int8(), *some]
        times = self.maps.bench.layer_times([self.maps.plan(m) for m in counted])
        self.counted = count(self.maps.groups, counted, times)

    def learn(self, int8_maps: Sequence[AnyArray]) -> CostModel:
        """Time these maps too, and fit the cost model again."""
        for start in range(0, len(int8_maps), _MAPS_PER_CALL):
            self._time(int8_maps[start : start + _MAPS_PER_CALL])
        self.cost = fit(self.maps.groups, self._edges, self.counted, self.known)
        return self.cost

    def _time(self, int8_maps: Sequence[AnyArray]) -> None:
        times = self.maps.bench.latencies([self.maps.plan(m) for m in int8_maps])
        self.known += [
            Timing(m, t.ratio, self._calls) for m, t in zip(int8_maps, times, strict=True) if t is not None
        ]
        self._calls += 1


def _measure(maps: Maps, problem: Problem, named: Mapping[str, AnyArray]) -> list[Point]:
    """Build, check and time every map; maps that match the reference on no engine are left out."""
    unlike = _unlike(named)
    plans = [maps.plan(m) for m in unlike.values()]
    all_macs = macs_by_node(maps.graph)
    points = []
    for (name, int8), plan, served in zip(unlike.items(), plans, maps.bench.serve(plans), strict=True):
        if served is not None:
            inside = sum(g.macs for g, i in zip(maps.groups, int8, strict=True) if i)
            share = inside / max(sum(all_macs.values()), 1)
            size = weight_bytes(maps, int8)
            points.append(Point(name, int8, plan, served, share, size, problem.cost.predict(int8)))
    return points


def weight_bytes(maps: Maps, int8: AnyArray) -> int:
    """Return the bytes of all weights of groups: one per INT8 weight, four per float."""
    total = 0
    for group, inside in zip(maps.groups, int8, strict=True):
        for placement in group.placements:
            if placement.weight is not None:
                total += maps.graph.constants[placement.weight.tensor].size * (1 if inside else 4)
    return total


def _by_time(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda p: p.served.latency.ratio)


def _conclusion(point: Point, points: Sequence[Point], why: str) -> str:
    if not point.is_float:
        return f"mixed chose '{point.name}' of {len(points)} measured plans: {why}"
    quantized = [p for p in points if not p.is_float]
    if not quantized:
        return _NOTHING_RUNS
    best = min(quantized, key=lambda p: p.served.latency.ratio)
    fidelity, latency = best.served.score.fidelity, best.served.latency
    lost = f", {100 * fidelity.lost:.2f} % of the boxes lost" if fidelity else ""
    return (
        f"INT8 did not win, so this is the float model ({why}): of {len(quantized)} measured INT8 plans the "
        f"fastest takes {latency.ratio:.2f}x the time of float{lost}"
    )
