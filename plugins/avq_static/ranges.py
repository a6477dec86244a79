"""The first search of ``static``: whether depthwise convolutions stay float, and which ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from avq import CalibrationStats, Workbench
from avq.toolbox import Placement, Ranging, WeightMethod, wanted_statistics
from avq.toolbox import assemble as assemble_plan
from avq.types import (
    CALIBRATORS,
    AnyArray,
    Calibrator,
    GraphView,
    MomentRequest,
    NodePrecision,
    PlanScore,
    QuantizationPlan,
)
from avq_static.options import StaticOptions

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


# Why depthwise convolutions lose accuracy in INT8: channels of very different range under one scale.

_SHOWN, _NAMED = 8, 3


@dataclass(frozen=True)
class ChannelRanges:
    """How the channels that one depthwise convolution reads differ.

    Attributes:
        node, channels: which, and how many channels it has.
        ratio: largest range over the median one; all of them share one scale.
    """

    node: str
    channels: int
    ratio: float

    def row(self) -> dict[str, object]:
        return {
            "depthwise convolution": self.node,
            "channels": self.channels,
            "largest / median range": round(self.ratio, 1),
            "levels left to the median channel": round(256 / self.ratio, 1),
        }


def channel_ranges(bench: Workbench, placements: Sequence[Placement]) -> list[ChannelRanges]:
    """Of every depthwise convolution, the most uneven first."""
    chosen = [p for p in placements if p.kind == "depthwise"]
    requests = [MomentRequest(p.activations[0].tensor, "peak") for p in chosen]
    peaks = bench.moments(requests)
    found = []
    for placement, request in zip(chosen, requests, strict=True):
        peak = peaks[request.key]
        alive = peak[peak > 0]
        ratio = float(alive.max() / np.median(alive)) if alive.size else 1.0
        found.append(ChannelRanges(placement.node, int(peak.size), ratio))
    return sorted(found, key=lambda c: (-c.ratio, c.node))


def tell(bench: Workbench, placements: Sequence[Placement], consequence: str) -> None:
    """A note on the most uneven layers, and a sentence that names them as the cause.

    Args:
        consequence: what was measured, and what was done about it.
    """
    found = channel_ranges(bench, placements)
    if not found:
        return
    bench.note("static: channel ranges of depthwise convolutions", [c.row() for c in found[:_SHOWN]])
    named = ", ".join(f"{c.node} ({c.ratio:.0f}x)" for c in found[:_NAMED])
    bench.conclude(
        f"depthwise convolutions are the cause of the loss: {consequence}; under one scale the largest channel's "
        f"range is up to {found[0].ratio:.0f} times the median one's, worst in {named}"
    )


# A plan with its measured score, and what counts as measurably better.

#: A share of lost boxes plus confidence shift below this is noise of a few hundred boxes.
_MARGIN = 0.003
#: So is this much of the noisiest output, in decibel.
_MARGIN_DB = 0.5
#: From here on the noisiest output is as good as float: a thousandth of its power.
_CLEAN_DB = 30.0


@dataclass(frozen=True)
class Tried:
    """One plan that was measured."""

    choice: Choice
    plan: QuantizationPlan
    score: PlanScore

    @property
    def worst_sqnr_db(self) -> float:
        return min(self.score.sqnr_db.values(), default=0.0)

    @property
    def in_boxes(self) -> float:
        """Lost share plus confidence shift; 0 without a decoder."""
        fidelity = self.score.fidelity
        return 0.0 if fidelity is None else fidelity.lost + abs(fidelity.confidence_shift)

    @property
    def within_noise(self) -> bool:
        """Nothing that could be measured is lost."""
        return self.in_boxes <= _MARGIN and self.worst_sqnr_db >= _CLEAN_DB

    @property
    def loss(self) -> str:
        fidelity = self.score.fidelity
        if fidelity is None:
            return f"{self.worst_sqnr_db:.1f} dB at the worst output"
        return f"{100 * fidelity.lost:.1f} % of the boxes are lost"

    def loss_beside(self, other: Tried) -> str:
        """The loss; where both lose the same boxes also the scores, which then tell them apart."""
        if self.loss != other.loss or self.score.fidelity is None:
            return self.loss
        return f"{self.loss} and scores shift by {self.score.fidelity.confidence_shift:+.3f}"

    def row(self) -> dict[str, object]:
        return {
            "calibrator": self.choice.ranges,
            "depthwise": "float" if self.choice.float_kinds else "int8",
            "pictures": self.score.fidelity.images if self.score.fidelity else "-",
            "lost boxes %": self._told("lost"),
            "confidence shift": self._told("shift"),
            "worst SQNR dB": self._told("sqnr"),
        }

    def change(self, option: str, before: Tried, kept: bool, remark: str) -> dict[str, object]:
        """One row on what an option changed."""
        return {
            "option": option,
            "lost boxes %": f"{before._told('lost')} -> {self._told('lost')}",
            "confidence shift": f"{before._told('shift')} -> {self._told('shift')}",
            "worst SQNR dB": f"{before._told('sqnr')} -> {self._told('sqnr')}",
            "kept": kept,
            "remark": remark,
        }

    def _told(self, what: str) -> object:
        fidelity = self.score.fidelity
        if what == "sqnr":
            return round(self.worst_sqnr_db, 1)
        if fidelity is None:
            return "-"
        return round(100 * fidelity.lost, 2) if what == "lost" else round(fidelity.confidence_shift, 4)


def best_of(tried: Sequence[Tried]) -> Tried:
    """Of those whose boxes are the best or within noise of it, the one with the least noise at its outputs."""
    least = min(t.in_boxes for t in tried)
    return max((t for t in tried if t.in_boxes <= least + _MARGIN), key=lambda t: t.worst_sqnr_db)


def measurably_better(after: Tried, before: Tried) -> bool:
    """Better in boxes or in decibel by more than noise, and in the other not worse by more than noise."""
    boxes, decibel = before.in_boxes - after.in_boxes, after.worst_sqnr_db - before.worst_sqnr_db
    return (boxes > _MARGIN and decibel > -_MARGIN_DB) or (decibel > _MARGIN_DB and boxes > -_MARGIN)


#: Pictures that rank ranges; the best ones are measured on all.
QUICK = 24
_PERCENTILES = (99.9, 99.99, 99.995, 99.999, 99.9999)
#: A kind of operator is kept float only when that wins back at least this much badness (lost share + shift).
WORTH_KEEPING_FLOAT = 0.005


@dataclass
class Ranges:
    """Measures choices over one network, each once.

    Attributes:
        int8, left: the plans that the decision on depthwise convolutions compared; None without one.
    """

    network: Network
    options: StaticOptions
    int8: Tried | None = None
    left: Tried | None = None
    _quick: dict[Choice, Tried] = field(default_factory=dict)

    def search(self, bench: Workbench) -> Tried:
        """The best ranges, measured on all pictures; what was tried becomes a note."""
        start = self._candidates()[0]
        start = replace(start, float_kinds=self._float_kinds(start))
        candidates = [replace(c, float_kinds=start.float_kinds) for c in self._candidates()]
        if len(candidates) > 1:
            candidates = self._finalists([self._measured(c) for c in candidates])
        finals = [measure(self.network, choice) for choice in candidates]
        best = best_of(finals)
        tried = [*self._quick.values(), *finals]
        bench.note("static: what was tried", [{**t.row(), "kept": t is best} for t in tried])
        return best

    def _finalists(self, tried: Sequence[Tried]) -> list[Choice]:
        """The best, and the next best where these few pictures do not tell them apart."""
        first = best_of(tried)
        second = best_of([t for t in tried if t is not first])
        return [first.choice, *([] if measurably_better(first, second) else [second.choice])]

    def _candidates(self) -> list[Choice]:
        """Min-max first: the plan without a parameter."""
        options = self.options
        symmetric = options.symmetric(symmetric_only=self.network.bench.symmetric_only)
        percentiles = _PERCENTILES if options.percentile == "auto" else (options.percentile,)
        base = Choice("minmax", 100.0, symmetric, options.bits, options.weights)
        searched = [replace(base, calibrator="percentile", percentile=p) for p in percentiles]
        if options.calibrator == "percentile":
            return [base, *searched] if options.percentile == "auto" else searched
        if options.calibrator != "auto":
            return [replace(base, calibrator=options.calibrator)]
        others = [replace(base, calibrator=m) for m in CALIBRATORS if m not in ("minmax", "percentile")]
        return [base, *others, *searched]

    def _float_kinds(self, start: Choice) -> tuple[str, ...]:
        has_depthwise = any(p.kind == "depthwise" for p in self.network.placements)
        if not has_depthwise or self.options.depthwise == "int8":
            return ()
        if self.options.depthwise == "float":
            return ("depthwise",)
        self.int8 = self._measured(start)
        self.left = self._measured(replace(start, float_kinds=("depthwise",)))
        gain = self.int8.score.badness - self.left.score.badness
        return ("depthwise",) if gain > WORTH_KEEPING_FLOAT else ()

    def _measured(self, choice: Choice) -> Tried:
        if choice not in self._quick:
            self._quick[choice] = measure(self.network, choice, pictures=QUICK)
        return self._quick[choice]


def measure(network: Network, choice: Choice, *, pictures: int | None = None) -> Tried:
    """Plan ``choice`` and judge it."""
    plan = network.plan(choice)
    return Tried(choice, plan, network.bench.error(plan, pictures=pictures))
