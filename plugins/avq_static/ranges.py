"""The first search of ``static``: whether depthwise convolutions stay float, and which ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from avq import Workbench
from avq.types import CALIBRATORS
from avq_static.assemble import Choice, Network
from avq_static.options import StaticOptions
from avq_static.trial import Tried, best_of, measurably_better

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
