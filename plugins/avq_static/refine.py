"""Changes to constants, one option after the other; each is measured before it is kept."""

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
    """The best plan so far, and the effect of every option.

    Attributes:
        network: the float network that ``best`` quantizes; replaced when channels are equalised.
        best: the best plan so far.
        options: of the strategy.
        rows: one per option tried or refused.
    """

    network: Network
    best: Tried
    options: StaticOptions
    rows: list[dict[str, object]] = field(default_factory=list)

    def run(self) -> Tried:
        """Equalise, round and correct in this order, as each starts from the result of the one before."""
        options = self.options
        self._try("equalize", options.equalize, "off", self._equalize)
        self._try("rounding", options.rounding, "nearest", self._round)
        self._try("bias_correction", options.bias_correction, "off", self._correct)
        return self.best

    def _try(self, option: str, setting: str, off: str, step: Callable[[], None]) -> None:
        if setting == "auto" and self.best.within_noise:
            self._refused(option, "not tried: the loss is within noise already")
        elif setting != off:
            step()

    def _equalize(self) -> None:
        network, forced = self.network, self.options.equalize == "on"
        read = dict.fromkeys(e.tensor for p in network.placements for e in p.activations)
        pairs, refused = find_pairs(network.graph)
        if not pairs:
            self._refused("equalize", f"no two convolutions qualify: {_reasons(refused)}")
            return
        equalization = equalize(network.graph, self._peaks(read))
        remark = f"{len(equalization.factors)} of {len(pairs)} pairs of convolutions"
        scaled = network.with_constants(equalization.overrides)
        tried = measure(scaled, self.best.choice)
        if self.best.choice.float_kinds and self.options.depthwise == "auto":
            whole = measure(scaled, replace(self.best.choice, float_kinds=()))
            if whole.score.badness < tried.score.badness + WORTH_KEEPING_FLOAT:
                tried, remark = whole, f"{remark}; depthwise convolutions then run in INT8"
        if self._decide("equalize", tried, forced, remark):
            self.network = scaled

    def _peaks(self, tensors: Iterable[str]) -> dict[str, F64]:
        requests = [MomentRequest(tensor, "peak") for tensor in tensors]
        peaks = self.network.bench.moments(requests)
        return {request.tensor: peaks[request.key] for request in requests}

    def _round(self) -> None:
        rounded = round_weights(self.network.graph, self.best.plan, self.network.bench)
        ratios = sorted(after / before for before, after in rounded.errors.values() if before > 0)
        if not rounded.weights:
            self._refused("rounding", _reasons(rounded.skipped) or "nothing rounds better than nearest")
            return
        remark = f"{len(rounded.weights)} weights; output error x {ratios[len(ratios) // 2]:.2f} in the median layer"
        self._overridden(
            "rounding", rounded.weights, self.options.rounding == "gram", remark + _skipped(rounded.skipped)
        )

    def _correct(self) -> None:
        correction = correct_biases(self.network.graph, self.best.plan, self.network.bench)
        if not correction.biases:
            self._refused("bias_correction", _reasons(correction.skipped) or "no weight is quantized")
            return
        remark = f"{len(correction.biases)} biases{_skipped(correction.skipped)}"
        self._overridden("bias_correction", correction.biases, self.options.bias_correction == "on", remark)

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


def _reasons(skipped: Mapping[str, str]) -> str:
    """Return the most frequent reasons with their counts."""
    counted = Counter(skipped.values()).most_common(3)
    return "; ".join(f"{count} x {why}" for why, count in counted)


def _skipped(skipped: Mapping[str, str]) -> str:
    return f"; skipped: {_reasons(skipped)}" if skipped else ""
