"""How often the gate is wrong, by simulation: at most one answer in twenty, in every kind of case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from avq.builder.answers import MAX_SLOWDOWN, boxes_answer, time_answer, time_words
from avq.builder.gate import Evidence, Limits, Measured, judge
from avq.builder.verdict_pictures import ENOUGH
from avq.measure.latency import Pair, timed_until
from avq.types import Answer, Fidelity, Latency

LIMIT = 0.01
PLANS = 20
#: Wrong answers that are tolerated.
WRONG = 0.05


@dataclass(frozen=True)
class Boxes:
    """Pictures with boxes: independent ones, or with losses that come together in a picture."""

    mean: float
    within: float

    def pictures(self, rng: np.random.Generator, boxes: int) -> np.ndarray:
        """Boxes per picture, ``boxes`` in total."""
        sizes = 1 + rng.poisson(self.mean - 1.0, boxes)
        sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), boxes)) + 1]
        sizes[-1] -= sizes.sum() - boxes
        return sizes

    def lost(self, rng: np.random.Generator, sizes: np.ndarray, share: float) -> np.ndarray:
        """Lost boxes per picture, beta-binomial with the correlation ``within`` inside a picture."""
        if not self.within:
            return rng.binomial(sizes, share)
        scale = 1.0 / self.within - 1.0
        shares = rng.beta(max(share * scale, 1e-9), (1.0 - share) * scale, len(sizes))
        return rng.binomial(sizes, shares)


def answer(lost: np.ndarray, sizes: np.ndarray, plans: int) -> Answer:
    total = int(sizes.sum())
    counted = Fidelity(
        len(sizes), total, float(lost.sum() / total), 0.0,
        picture_boxes=tuple(sizes.tolist()), picture_lost=tuple(lost.tolist()), picture_shift=(0.0,) * len(sizes),
    )  # fmt: skip
    return boxes_answer(counted, 100 * LIMIT, plans).answer


def verdict(rng: np.random.Generator, kind: Boxes, boxes: int, share: float) -> tuple[Answer, float]:
    """The answer on the best of twenty plans, and that plan's true loss: the stages of a build."""
    shares = share * rng.uniform(0.8, 1.2, PLANS)
    own, searched, spare = divided(boxes)
    seen = kind.pictures(rng, searched or boxes)
    plans = [kind.lost(rng, seen, p) for p in shares]
    best = int(np.argmin([lost.sum() for lost in plans]))
    true = float(shares[best])
    if not searched:
        return answer(plans[best], seen, PLANS), true
    sizes = kind.pictures(rng, own + spare)
    lost = kind.lost(rng, sizes, true)
    first = int(np.searchsorted(np.cumsum(sizes), own)) + 1
    for count in dict.fromkeys((min(first, len(sizes)), len(sizes))):
        now = answer(lost[:count], sizes[:count], 1)
        if now != "cannot tell":
            return now, true
    return answer(np.concatenate([lost, plans[best]]), np.concatenate([sizes, seen]), PLANS), true


def divided(boxes: int) -> tuple[int, int, int]:
    """Boxes of the verdict, of the search and of neither; too few are shared, so none is the search's alone."""
    own = min(160, boxes)
    searched = min(150, boxes - own)
    own += min(240, boxes - own - searched)
    searched += min(150, boxes - own - searched)
    return (own, searched, boxes - own - searched) if own >= ENOUGH else (boxes, 0, 0)


def wrong(right: float, cases: int) -> float:
    """The largest share of wrong answers that five in a hundred explain, at two standard deviations."""
    return right + 2.0 * np.sqrt(right * (1.0 - right) / max(cases, 1))


STRATA = ((4, 149), (149, 310), (310, 500), (500, 1000), (1000, 5000))


def errors(rng: np.random.Generator, kind: Boxes, least: int, most: int, cases: int) -> tuple[float, float]:
    """Shares of wrong yes among plans that lose more than twice the limit, of wrong no among those within it."""
    yes: list[bool] = []
    no: list[bool] = []
    for index in range(cases):
        boxes = int(np.exp(rng.uniform(np.log(least), np.log(most))))
        share = rng.uniform(2 * LIMIT, 0.05) if index % 2 else rng.uniform(0.0, LIMIT)
        found, true = verdict(rng, kind, boxes, share)
        if true > 2 * LIMIT:
            yes.append(found == "yes")
        elif true <= LIMIT:
            no.append(found == "no")
    return float(np.mean(yes)), float(np.mean(no))


@pytest.mark.slow
@pytest.mark.parametrize("boxes", STRATA, ids=str)
@pytest.mark.parametrize(
    "kind", [Boxes(1.5, 0.3), Boxes(3.7, 0.0), Boxes(3.7, 0.3), Boxes(12.0, 0.3)], ids=str
)
def test_wrong_answers_on_boxes_are_rare_in_every_stratum(kind: Boxes, boxes: tuple[int, int]) -> None:
    cases = 60
    wrong_yes, wrong_no = errors(np.random.default_rng(boxes[0]), kind, *boxes, cases)
    assert max(wrong_yes, wrong_no) <= wrong(WRONG, cases // 2), (wrong_yes, wrong_no)


@dataclass
class Machine:
    """A clock that noisy inferences move: jitter with a heavy tail, and drift that both engines share.

    Attributes:
        noise: standard deviation of the logarithm of one inference.
        now_ns_: time that has passed.
    """

    rng: np.random.Generator
    noise: float
    now_ns_: float = 0.0
    drift: float = 0.0

    def now_ns(self) -> int:
        return int(self.now_ns_)

    def engine(self, ns: float) -> Callable[[], object]:
        def run() -> None:
            self.drift += 0.05 * (self.noise * self.rng.standard_normal() - self.drift)
            slow = self.rng.uniform(2.0, 5.0) if self.rng.random() < 0.05 else 1.0
            jitter = np.exp(3.0 * self.drift + self.noise * self.rng.standard_normal())
            self.now_ns_ += ns * jitter * slow

        return run


def timed(rng: np.random.Generator, true_ratio: float, noise: float) -> Latency:
    """The time of a candidate that takes ``true_ratio`` of its rival's, as a build measures it."""
    machine = Machine(rng, noise)

    @contextmanager
    def opened() -> Iterator[Any]:
        yield machine.engine(true_ratio * 8e6), machine.engine(8e6)

    def latency(pair: Pair) -> Latency:
        own, rival = pair.own, pair.rival
        return Latency(own.p50_ms, own.p99_ms, *pair.ratio, "float", rival.p50_ms, int(own.ns.size))

    return latency(
        timed_until(lambda pair: time_answer(latency(pair)) != "cannot tell", opened, clock=machine)
    )


def time_errors(rng: np.random.Generator, noise: float, cases: int) -> tuple[float, float]:
    """Shares of wrong yes above the limit, and of wrong no at or below it; half of all cases are near it."""
    yes: list[bool] = []
    no: list[bool] = []
    for index in range(cases):
        near = index % 4 < 2
        above = rng.uniform(1.0, 1.02 if near else 1.2)
        true_ratio = MAX_SLOWDOWN * above if index % 2 else MAX_SLOWDOWN / above
        found = timed(rng, true_ratio, noise)
        words, said = time_words(found), time_answer(found)
        assert ("fast" in words) == (said == "yes")
        assert said != "yes" or found.ratio_high <= MAX_SLOWDOWN >= found.p50_ms / found.float_p50_ms
        (yes if true_ratio > MAX_SLOWDOWN else no).append(
            said == ("yes" if true_ratio > MAX_SLOWDOWN else "no")
        )
    return float(np.mean(yes)), float(np.mean(no))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1, 0.3])
def test_wrong_answers_on_time_are_rare_at_every_noise(noise: float) -> None:
    cases = 40
    wrong_yes, wrong_no = time_errors(np.random.default_rng(3), noise, cases)
    assert max(wrong_yes, wrong_no) <= wrong(WRONG, cases // 2), (wrong_yes, wrong_no)


@pytest.mark.parametrize(
    ("lost", "boxes", "expected"),
    [
        (0, 148, "cannot tell"), (0, 149, "yes"), (1, 235, "cannot tell"), (1, 236, "yes"),
        (2, 312, "cannot tell"), (2, 313, "yes"), (2, 64, "cannot tell"), (3, 64, "no"),
        (6, 300, "cannot tell"), (7, 300, "no"), (15, 1000, "cannot tell"), (16, 1000, "no"),
    ],
)  # fmt: skip
def test_the_table_of_boxes(lost: int, boxes: int, expected: Answer) -> None:
    found = boxes_answer(Fidelity(boxes, boxes, lost / boxes, 0.0), 100 * LIMIT)
    assert found.answer == expected
    if expected == "cannot tell" and lost / boxes <= LIMIT:
        assert found.needed is not None and found.needed >= 1


@pytest.mark.parametrize("ratio", [0.97, 1.0, 1.01])
def test_never_fast_with_the_interval_above_the_limit(ratio: float) -> None:
    wide = Latency(5.0, 6.0, ratio, ratio - 0.02, 1.021, "openvino float bf16", 5.0, 60)
    counted = Fidelity(400, 400, 0.0, 0.0)
    verdict = judge(Evidence(Measured(None, None, counted, 30.0, wide)), Limits())
    assert (verdict.accepted, verdict.time) == ("no", "cannot tell")
    assert not any("fast" in reason and "float:" not in reason for reason in verdict.reasons[1:2])


def test_medians_that_contradict_the_paired_ratio_decide_nothing() -> None:
    """p50 of 3.15 ms against 1.86 ms, and a paired ratio of 0.97: a machine too busy to time."""
    odd = Latency(3.15, 4.0, 0.97, 0.95, 0.99, "openvino float bf16", 1.86, 480)
    assert time_answer(odd) == "cannot tell" and "too busy" in time_words(odd)


def test_time_does_not_count_where_only_accuracy_is_judged() -> None:
    slow = Latency(5.0, 6.0, 1.3, 1.25, 1.35, "openvino float bf16", 3.9, 60)
    measured = Measured(None, None, Fidelity(400, 400, 0.0, 0.0), 30.0, slow)
    assert judge(Evidence(measured), Limits()).accepted == "no"
    verdict = judge(Evidence(measured), Limits(judge_time=False, budget_ms=1.0))
    assert (verdict.accepted, verdict.accuracy, verdict.time) == ("yes", "yes", "not judged")


def test_a_search_on_the_same_boxes_needs_more_of_them() -> None:
    counted = Fidelity(200, 200, 0.0, 0.0)
    measured = Measured(None, None, counted, 30.0, None, plans=PLANS)
    verdict = judge(Evidence(measured), Limits())
    assert verdict.accuracy == "cannot tell" and any("no error rate is claimed" in r for r in verdict.reasons)
    assert judge(Evidence(Measured(None, None, counted, 30.0, None)), Limits()).accuracy == "yes"


def test_boxes_that_crowd_in_few_pictures_count_less() -> None:
    crowded = Fidelity(
        2, 300, 0.0, 0.0, picture_boxes=(150, 150), picture_lost=(0, 0), picture_shift=(0.0, 0.0)
    )
    assert boxes_answer(crowded, 1.0).answer == "cannot tell"


def test_an_exact_float_engine_needs_no_boxes_and_bf16_does() -> None:
    few = Fidelity(10, 6, 0.0, 0.0)
    exact = Measured(None, None, few, 118.0, None, is_float=True, runs_in="f32")
    assert judge(Evidence(exact), Limits()).accuracy == "yes"
    rounded = Measured(None, None, few, 40.0, None, is_float=True, runs_in="bf16")
    assert judge(Evidence(rounded), Limits()).accuracy == "cannot tell"
