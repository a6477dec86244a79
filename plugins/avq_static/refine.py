"""What ``static`` does to constants, one option after the other, each measured before it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from avq.toolbox import correct_biases, equalize, find_pairs, round_weights
from avq.types import F64, AnyArray, MomentRequest
from avq_static.options import StaticOptions
from avq_static.ranges import WORTH_KEEPING_FLOAT, Network, Tried, measurably_better, measure


@dataclass
class Refinement:
    """The best plan so far, and what every option changed.

    Attributes:
        network: the float network that ``best`` quantizes; another one once channels are equalised.
    """

    network: Network
    best: Tried
    options: StaticOptions
    rows: list[dict[str, object]] = field(default_factory=list)

    def run(self) -> Tried:
        """Equalise, round, correct: in this order, as each works on what the one before left."""
        options = self.options
        self._try("equalize", options.equalize, "off", self._equalize)
        self._try("rounding", options.rounding, "nearest", self._round)
        self._try("bias_correction", options.bias_correction, "off", self._correct)
        return self.best

    def _try(self, option: str, asked: str, never: str, step: Callable[[], None]) -> None:
        if asked == "auto" and self.best.within_noise:
            self._refused(option, "not tried: the loss is within noise already")
        elif asked != never:
            step()

    def _equalize(self) -> None:
        network, forced = self.network, self.options.equalize == "on"
        read = dict.fromkeys(e.tensor for p in network.placements for e in p.activations)
        pairs, refused = find_pairs(network.graph)
        if not pairs:
            self._refused("equalize", f"no two convolutions qualify: {_told(refused)}")
            return
        found = equalize(network.graph, self._peaks(read))
        remark = f"{len(found.factors)} of {len(pairs)} pairs of convolutions"
        scaled = network.with_constants(found.overrides)
        tried = measure(scaled, self.best.choice)
        if self.best.choice.float_kinds and self.options.depthwise == "auto":
            whole = measure(scaled, replace(self.best.choice, float_kinds=()))
            if whole.score.badness < tried.score.badness + WORTH_KEEPING_FLOAT:
                tried, remark = whole, f"{remark}; depthwise convolutions then run in INT8"
        if self._decide("equalize", tried, forced, remark):
            self.network = scaled

    def _peaks(self, tensors: Iterable[str]) -> dict[str, F64]:
        requests = [MomentRequest(tensor, "peak") for tensor in tensors]
        answers = self.network.bench.moments(requests)
        return {request.tensor: answers[request.key] for request in requests}

    def _round(self) -> None:
        found = round_weights(self.network.graph, self.best.plan, self.network.bench)
        ratios = sorted(after / before for before, after in found.errors.values() if before > 0)
        if not found.weights:
            self._refused("rounding", _told(found.skipped) or "nothing rounds better than nearest")
            return
        remark = (
            f"{len(found.weights)} weights; output error x {ratios[len(ratios) // 2]:.2f} in the median layer"
        )
        self._overridden(
            "rounding", found.weights, self.options.rounding == "gram", remark + _also(found.skipped)
        )

    def _correct(self) -> None:
        found = correct_biases(self.network.graph, self.best.plan, self.network.bench)
        if not found.biases:
            self._refused("bias_correction", _told(found.skipped) or "no weight is quantized")
            return
        remark = f"{len(found.biases)} biases{_also(found.skipped)}"
        self._overridden("bias_correction", found.biases, self.options.bias_correction == "on", remark)

    def _overridden(self, option: str, constants: Mapping[str, AnyArray], forced: bool, remark: str) -> None:
        plan = replace(self.best.plan, overrides={**self.best.plan.overrides, **constants})
        self._decide(option, Tried(self.best.choice, plan, self.network.bench.error(plan)), forced, remark)

    def _decide(self, option: str, tried: Tried, forced: bool, remark: str) -> bool:
        kept = forced or measurably_better(tried, self.best)
        self.rows.append(tried.change(option, self.best, kept, remark))
        if kept:
            self.best = tried
        return kept

    def _refused(self, option: str, why: str) -> None:
        self.rows.append(self.best.change(option, self.best, False, why))


def _told(skipped: Mapping[str, str]) -> str:
    """The reasons with how often each was given, the most frequent first."""
    counted = Counter(skipped.values()).most_common(3)
    return "; ".join(f"{count} x {why}" for why, count in counted)


def _also(skipped: Mapping[str, str]) -> str:
    return f"; skipped: {_told(skipped)}" if skipped else ""
