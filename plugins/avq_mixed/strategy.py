"""The search of ``mixed``, top to bottom: ranges, sensitivities, costs, maps, measurements, choice."""

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

# Predicted fastest maps under a floor of INT8: where memory or a later target counts more than this engine's time.
_SHARES = (0.6, 0.92)
# Enough that every group is seen in both precisions beside neighbours of both.
_COUNTED_MAPS = 20
# Each call opens float sessions of its own to stand against: their luck averages out over some calls.
_MAPS_PER_CALL = 21
_PICTURES_PER_CALIBRATOR = 48
_NOTHING_RUNS = "INT8 did not win: no engine here runs a quantized plan of this model rightly"


class MixedOptions(RangingOptions):
    """Options of ``mixed``."""

    pictures: int = Field(16, ge=1, description="pictures that rank the groups; finalists see all of them")
    probes: int = Field(
        120,
        ge=1,
        description="judgements spent on sensitivities; larger networks are judged in runs of layers",
    )
    maps: int = Field(84, ge=6, le=200, description="random precision maps that the cost model is fitted to")
    seed: int = Field(7, ge=0, description="of the random maps: the same ones on every machine")
    steps: int = Field(6, ge=2, le=20, description="points of the predicted front that are really built")
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
        # What is best by a model flatters the model: time those maps, correct it, and solve again.
        least = _least_of_groups(maps, options.least_int8)
        problem = replace(problem, cost=timed.learn(candidates(problem, options.steps, _SHARES, least)))
        points = _measure(maps, problem, {**always, **_solved(problem, options.steps, least)})
        allowed = with_share(points, options.least_int8)
        point, why = choose(allowed, budget_ms=bench.budget_ms, max_drop=bench.max_drop)

        kept = {id(p) for p in front(points)}
        rows = [{**p.row(), "front": id(p) in kept, "chosen": p is point} for p in _by_time(points)]
        bench.note("mixed: what was really measured", rows)
        bench.plot(front_figure(points, point, bench.max_drop))
        bench.groups(group_rows(maps.groups, measured, problem, point.int8, timed.counted))
        bench.conclude(_conclusion(point, points, why))
        maps.reasons.update(group_reasons(maps.groups, problem, point.int8))
        return maps.plan(point.int8)

    def timed(self, maps: Maps) -> Timed:
        """What times this search's maps; benchmarks override it to look inside."""
        return Timed(maps)

    def maps(
        self, graph: GraphView, bench: Workbench, placements: Sequence[Placement], options: MixedOptions
    ) -> Maps:
        """Groups and their ranges, by the calibrator that serves everything but depthwise best."""
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
    """Maps that are always measured, quantized ones first."""
    named = {"all INT8": maps.all_int8(), "all but depthwise": maps.without_kind("depthwise")}
    return {**{name: m for name, m in _unlike(named).items() if m.any()}, "all float": maps.all_float()}


def _unlike(named: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Without the maps that are there already under another name."""
    first: dict[bytes, str] = {}
    for name, int8 in named.items():
        first.setdefault(int8.tobytes(), name)
    return {name: named[name] for name in first.values()}


def _solved(problem: Problem, steps: int, least_share: float) -> dict[str, AnyArray]:
    found = candidates(problem, steps, _SHARES, least_share)
    return {f"solved {i + 1}": m for i, m in enumerate(found)}


def _least_of_groups(maps: Maps, least: float) -> float:
    """``least`` of all multiply-adds as a share of the groups', who are not all of them."""
    everything, ours = sum(macs_by_node(maps.graph).values()), sum(g.macs for g in maps.groups)
    return min(1.0, least * everything / max(ours, 1))


def mac_shares(groups: Sequence[Group]) -> F64:
    """(groups,) share of the groups' multiply-adds."""
    macs = np.array([g.macs for g in groups], np.float64)
    shares: F64 = macs / max(float(macs.sum()), 1.0)
    return shares


class Timed:
    """Whole-network times of precision maps on the serving engine, and the cost model that follows.

    Attributes:
        counted: each group's time in context, where the engine tells its layers' times.
        known: what the cost model is fitted to.
        cost: the latest one.
    """

    cost: CostModel

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.counted: Counted | None = None
        self._edges = boundaries(maps.graph, [p for g in maps.groups for p in g.placements])
        self.known: list[Timing] = []
        self._calls = 0

    def count(self, int8_maps: Sequence[AnyArray]) -> None:
        """Let the engine count its layers in all-float, all-INT8 and some of these."""
        some = int8_maps[:: max(1, len(int8_maps) // _COUNTED_MAPS)]
        counted = [self.maps.all_float(), self.maps.all_int8(), *some]
        times = self.maps.bench.layer_times([self.maps.plan(m) for m in counted])
        self.counted = count(self.maps.groups, counted, times)

    def learn(self, int8_maps: Sequence[AnyArray]) -> CostModel:
        """Time these too, and fit again."""
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
    """Build, check and time every map; those that no engine runs rightly are left out."""
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
    """Bytes of the weights of every group: one per INT8 weight, four per float."""
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
