"""Search for activation ranges, and for whether depthwise convolutions stay float."""

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
        calibrator: method that chooses ranges.
        percentile: percent of values inside the range, for calibrator "percentile".
        symmetric: True for signed grids around zero, False for unsigned ones with a zero point.
        bits: bits of weights.
        weights: method that chooses scales of weights.
        float_kinds: kinds of operators that stay float.
    """

    calibrator: Calibrator
    percentile: float
    symmetric: bool
    bits: int = 8
    weights: WeightMethod = "auto"
    float_kinds: tuple[str, ...] = ()

    @property
    def ranges(self) -> str:
        """Calibrator as text, with its percentile."""
        return f"percentile {self.percentile:g}" if self.calibrator == "percentile" else self.calibrator


@dataclass(frozen=True)
class Network:
    """A float network with the statistics of its activations.

    Attributes:
        graph: source of weights and biases.
        bench: workbench of this network.
        placements: operators that can run in integers.
        stats: histograms of every tensor they read.
        overrides: constants in which ``graph`` differs from the float graph of the build.
    """

    graph: GraphView
    bench: Workbench
    placements: Sequence[Placement]
    stats: CalibrationStats
    overrides: Mapping[str, AnyArray] = field(default_factory=dict)

    def plan(self, choice: Choice) -> QuantizationPlan:
        """Return the plan for ``choice``; the same inputs give the same digest."""
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
        """Return the network with constants replaced and statistics collected again on the same pictures."""
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
    """Spread of channel ranges at the input of one depthwise convolution.

    Attributes:
        node: node name.
        channels: number of channels.
        ratio: largest range over the median one; all channels share one scale.
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
    """Return the channel ranges of every depthwise convolution, the most uneven first."""
    chosen = [p for p in placements if p.kind == "depthwise"]
    requests = [MomentRequest(p.activations[0].tensor, "peak") for p in chosen]
    peaks = bench.moments(requests)
    ranges = []
    for placement, request in zip(chosen, requests, strict=True):
        peak = peaks[request.key]
        alive = peak[peak > 0]
        ratio = float(alive.max() / np.median(alive)) if alive.size else 1.0
        ranges.append(ChannelRanges(placement.node, int(peak.size), ratio))
    return sorted(ranges, key=lambda c: (-c.ratio, c.node))


def report_channel_ranges(
    bench: Workbench, placements: Sequence[Placement], consequence: str, *, left_float: bool
) -> None:
    """Note the most uneven layers, and name them in a sentence: float because of the loss, or its cause.

    Args:
        bench: receives the note.
        placements: all operators that can run in integers.
        left_float: they stay float, so that their loss is none of the bundle.
        consequence: the measured loss and the decision that follows from it.
    """
    ranges = channel_ranges(bench, placements)
    if not ranges:
        return
    bench.note("static: channel ranges of depthwise convolutions", [c.row() for c in ranges[:_SHOWN]])
    named = ", ".join(f"{c.node} ({c.ratio:.0f}x)" for c in ranges[:_NAMED])
    what = "stay float" if left_float else "are the cause of the loss"
    bench.conclude(
        f"depthwise convolutions {what}: {consequence}; under one scale the largest channel's "
        f"range is up to {ranges[0].ratio:.0f} times the median one's, worst in {named}"
    )


# Measured plans, and the differences between them that exceed noise.

#: Noise of lost share plus confidence shift on a few hundred boxes.
_MARGIN = 0.003
#: Noise of the SQNR of the worst output, in decibel.
_MARGIN_DB = 0.5
#: SQNR from which the worst output counts as equal to float: a thousandth of its power.
_CLEAN_DB = 30.0


@dataclass(frozen=True)
class Tried:
    """One measured plan."""

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
        """True when the loss is within measurement noise."""
        return self.in_boxes <= _MARGIN and self.worst_sqnr_db >= _CLEAN_DB

    @property
    def loss(self) -> str:
        fidelity = self.score.fidelity
        if fidelity is None:
            return f"{self.worst_sqnr_db:.1f} dB at the worst output"
        return f"{100 * fidelity.lost:.1f} % of the boxes are lost"

    def loss_compared_with(self, other: Tried) -> str:
        """Return the loss as text; where both lose the same boxes, with the confidence shift."""
        if self.loss != other.loss or self.score.fidelity is None:
            return self.loss
        return f"{self.loss} and scores shift by {self.score.fidelity.confidence_shift:+.3f}"

    def row(self) -> dict[str, object]:
        return {
            "calibrator": self.choice.ranges,
            "depthwise": "float" if self.choice.float_kinds else "int8",
            "pictures": self.score.fidelity.images if self.score.fidelity else "-",
            "lost boxes %": self._cell("lost"),
            "confidence shift": self._cell("shift"),
            "worst SQNR dB": self._cell("sqnr"),
        }

    def change(self, option: str, before: Tried, kept: bool, remark: str) -> dict[str, object]:
        """Return a table row with the change by one option."""
        return {
            "option": option,
            "lost boxes %": f"{before._cell('lost')} -> {self._cell('lost')}",
            "confidence shift": f"{before._cell('shift')} -> {self._cell('shift')}",
            "worst SQNR dB": f"{before._cell('sqnr')} -> {self._cell('sqnr')}",
            "kept": kept,
            "remark": remark,
        }

    def _cell(self, what: str) -> object:
        fidelity = self.score.fidelity
        if what == "sqnr":
            return round(self.worst_sqnr_db, 1)
        if fidelity is None:
            return "-"
        return round(100 * fidelity.lost, 2) if what == "lost" else round(fidelity.confidence_shift, 4)


def best_of(tried: Sequence[Tried]) -> Tried:
    """Return the plan with the least output noise among those whose loss in boxes is within noise of the best."""
    least = min(t.in_boxes for t in tried)
    return max((t for t in tried if t.in_boxes <= least + _MARGIN), key=lambda t: t.worst_sqnr_db)


def measurably_better(after: Tried, before: Tried) -> bool:
    """Return True if boxes or SQNR improve by more than noise and the other gets no worse by more than noise."""
    boxes, decibel = before.in_boxes - after.in_boxes, after.worst_sqnr_db - before.worst_sqnr_db
    return (boxes > _MARGIN and decibel > -_MARGIN_DB) or (decibel > _MARGIN_DB and boxes > -_MARGIN)


#: Pictures that rank ranges; the best are measured on all.
QUICK = 24
_PERCENTILES = (99.9, 99.99, 99.995, 99.999, 99.9999)
#: Gain in badness (lost share + shift) from which a kind of operator stays float.
WORTH_KEEPING_FLOAT = 0.005


@dataclass
class Ranges:
    """Search over choices for one network; each is measured once.

    Attributes:
        int8: plan with depthwise convolutions in INT8, from that comparison; None when there was none.
        left: plan with them float, from the same comparison; None when there was none.
    """

    network: Network
    options: StaticOptions
    int8: Tried | None = None
    left: Tried | None = None
    _quick: dict[Choice, Tried] = field(default_factory=dict)

    def search(self, bench: Workbench) -> Tried:
        """Return the best ranges, measured on all pictures, and note every plan tried."""
        start = self._candidates()[0]
        start = replace(start, float_kinds=self._float_kinds(start))
        candidates = [replace(c, float_kinds=start.float_kinds) for c in self._candidates()]
        if len(candidates) > 1:
            candidates = self._finalists([self._measured(c) for c in candidates])
        finals = [measure(self.network, choice) for choice in candidates]
        best = best_of(finals)
        tried = [*self._quick.values(), *finals]
        bench.note("static: plans tried", [{**t.row(), "kept": t is best} for t in tried])
        return best

    def _finalists(self, tried: Sequence[Tried]) -> list[Choice]:
        """Return the best choice, and the second where the difference on these few pictures is within noise."""
        first = best_of(tried)
        second = best_of([t for t in tried if t is not first])
        return [first.choice, *([] if measurably_better(first, second) else [second.choice])]

    def _candidates(self) -> list[Choice]:
        """Return the choices to measure; min-max comes first, as it has no parameter."""
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
    """Plan ``choice`` and measure its error."""
    plan = network.plan(choice)
    return Tried(choice, plan, network.bench.error(plan, pictures=pictures))
