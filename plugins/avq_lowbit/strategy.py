"""Top level of ``lowbit``: precision of data, order of reductions, number of reductions, and the plan to serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from avq import Workbench
from avq.toolbox import Placement, Ranging, place, wanted_statistics
from avq.types import GraphView, MeasuredPlan, PlanScore, QuantizationPlan
from avq_lowbit.corrections import Corrections
from avq_lowbit.explain import conclusion, curve, group_reasons, group_rows, step_rows
from avq_lowbit.plans import Bits, Data, Group, Plans, weight_groups
from avq_lowbit.search import Limits, Search, Step
from avq_lowbit.sensitivity import damages, walk

_MEGABYTE = 1e6
# Measured in turn until one is accurate and not slower than the gate allows; the last has 8 bits everywhere.
_FINALISTS = 4


class LowbitOptions(BaseModel):
    """Options of ``lowbit``."""

    model_config = ConfigDict(extra="forbid")

    target_mb: float | None = Field(
        None,
        gt=0,
        description="megabytes (10^6 bytes) of weights to reach; without it, the limit of loss decides",
    )
    activations: Literal["auto", "int8", "float"] = Field(
        "auto", description="data in INT8, in float, or in INT8 if measured accurate and faster"
    )
    calibrator: Literal["entropy", "mse", "percentile", "minmax"] = Field(
        "mse", description="method that chooses ranges of INT8 data"
    )
    percentile: float = Field(
        99.99, gt=50.0, le=100.0, description="percent of values kept by calibrator=percentile"
    )
    correction: bool = Field(True, description="round weights for their layer's output, and correct biases")
    pictures: int = Field(24, ge=1, description="pictures that rank the groups; the walk is measured on all")
    probes: int = Field(
        120, ge=1, description="error measurements for the ranking; larger networks in runs of layers"
    )
    points: int = Field(12, ge=2, le=60, description="points of the walk that are measured for its curve")
    rounds: int = Field(5, ge=0, le=20, description="further points that bisect towards the limit")


class LowbitQuantizer:
    """The strategy ``lowbit``."""

    name = "lowbit"
    version = "1"
    options = LowbitOptions

    def plan(self, graph: GraphView, bench: Workbench, options: LowbitOptions) -> QuantizationPlan:
        placements = place(graph, bench.keep_float)
        groups = weight_groups(graph, placements)
        if not groups:
            bench.conclude("lowbit left the model float: no operator has weights that may be quantized")
            return QuantizationPlan(graph.digest, owner=self.name, owner_version=self.version)
        limits = Limits.of(bench)
        plans = self._plans(graph, bench, placements, groups, options, limits)
        search = self._search(plans, options, limits)
        step, served = _chosen(search, bench, options, limits)

        reasons = group_reasons(plans, step)
        bench.note("lowbit: the walk", step_rows(search.steps, step, limits))
        bench.note("lowbit: every group", group_rows(plans, step))
        bench.plot(curve(search.steps, step, limits))
        bench.conclude(conclusion(plans, step, served, options.target_mb))
        return plans.plan(step.bits, reasons)

    def _plans(
        self,
        graph: GraphView,
        bench: Workbench,
        placements: Sequence[Placement],
        groups: Sequence[Group],
        options: LowbitOptions,
        limits: Limits,
    ) -> Plans:
        """Return plans with data as the option requests, or as measured."""
        corrections = Corrections(graph, bench) if options.correction else None

        def with_data(data: Data) -> Plans:
            owner = (self.name, self.version)
            return Plans(graph, bench, groups, data, bench.symmetric_only, corrections, owner)

        floats = with_data(Data(int8=False))
        if options.activations == "float":
            return floats
        stats = bench.collect(wanted_statistics(graph, placements))
        ranging = Ranging(
            options.calibrator, options.percentile, bench.symmetric_only, tied=bench.symmetric_only
        )
        integers = with_data(Data(True, stats, ranging))
        if options.activations == "int8" or bench.symmetric_only:  # there only INT8 data make INT8 layers
            return integers
        return integers if _int8_is_better(integers, floats, limits) else floats

    def _search(self, plans: Plans, options: LowbitOptions, limits: Limits) -> Search:
        """Return the walk with its measured points."""
        damage = damages(plans, options.pictures, options.probes)
        size = np.array([[g.bytes_at(b) for b in plans.widths] for g in plans.groups], np.float64)
        path = [tuple(plans.widths[i] for i in state) for state in walk(damage, size)]
        sizes = [plans.bytes_at(bits) for bits in path]

        def judge(bits: Bits) -> tuple[QuantizationPlan, PlanScore]:
            plan = plans.plan(bits)
            return plan, plans.bench.error(plan)

        search = Search(path, sizes, judge, limits)
        search.sketch(options.points)
        if options.target_mb is None:
            search.narrow(options.rounds)
        return search


def _int8_is_better(integers: Plans, floats: Plans, limits: Limits) -> bool:
    """Return True when 8-bit data leave half of the limit to the weights and are faster on the serving engine."""
    wide = tuple(8 for _ in integers.groups)
    ours, theirs = integers.bench.serve([integers.plan(wide), floats.plan(wide)])
    if ours is None or not limits.halved.accurate(ours.score):
        return False
    return theirs is None or ours.latency.ratio_high < theirs.latency.ratio


def _chosen(
    search: Search, bench: Workbench, options: LowbitOptions, limits: Limits
) -> tuple[Step, MeasuredPlan | None]:
    """Return the step to build and its measurement; None when it matches its reference on no engine here."""
    if options.target_mb is not None:
        step = search.within(int(options.target_mb * _MEGABYTE))
        return step, bench.serve([step.plan])[0]
    for step in [*search.accurate()[: _FINALISTS - 1], search.at(0)]:
        served = bench.serve([step.plan])[0]
        if served is not None and limits.as_served.accurate(served.score) and limits.fast(served.latency):
            return step, served
    return search.at(0), served
