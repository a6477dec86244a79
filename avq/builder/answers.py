"""Three answers to one question each, from measured numbers: yes, no, or cannot tell.

A loss is a *yes* at most its limit L with an upper one-sided 95 % limit of at most 2 L, a *no* with a lower one above
L, else *cannot tell*. A time is a *yes* with its whole 95 % interval at most ``MAX_SLOWDOWN``, a *no* with all of it
above. Nothing here may import onnx: ``avq compile`` judges engines on machines without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from avq.measure.limits import MISSED, Bounds, exact_limits, independent_boxes, ratio_limits, share_limits
from avq.types import Answer, Fidelity, Latency, MapLoss

MAX_CONFIDENCE_SHIFT = 0.02
MAX_SLOWDOWN = 1.02
#: The upper limit of a loss may reach this multiple of the loss that is tolerated.
UPPER = 2.0
#: More boxes than this are not worth a sentence.
MOST_BOXES = 10_000


@dataclass(frozen=True, slots=True)
class LossAnswer:
    """An answer on a loss.

    Attributes:
        metric: the numbers in one sentence.
        needed: boxes still missing where the answer is "cannot tell"; None where no number of them would do.
    """

    answer: Answer
    metric: str
    needed: int | None = None


def answer_of(bounds: Bounds, limit: float) -> Answer:
    """Judge a loss with limits against the loss that is tolerated."""
    if bounds.low > limit:
        return "no"
    return "yes" if bounds.value <= limit and bounds.high <= UPPER * limit else "cannot tell"


def worst(answers: Sequence[Answer]) -> Answer:
    """Return "no" if there is one, else "cannot tell" if there is one, else "yes"."""
    order: tuple[Answer, ...] = ("no", "cannot tell", "yes")
    return next(answer for answer in order if answer in answers)


def missed_of(plans: int) -> float:
    """Return the error of an upper limit where the best of ``plans`` was chosen on the same boxes (Bonferroni)."""
    return MISSED / max(plans, 1)


def boxes_answer(fidelity: Fidelity, limit_percent: float, plans: int = 1) -> LossAnswer:
    """Judge lost boxes and the confidence shift against the float model's boxes.

    Args:
        fidelity: with the boxes of each picture.
        limit_percent: share of lost boxes that is tolerated.
        plans: number of plans of which the best was chosen on these pictures; 1 where others chose.
    """
    if fidelity.boxes == 0:
        metric = (
            f"nothing to compare: the float model has no box with score >= 0.5 in {fidelity.images} pictures"
        )
        return LossAnswer("cannot tell", metric, _fewest_boxes(limit_percent / 100.0))
    lost, shift, limit = lost_bounds(fidelity, plans), _shift_bounds(fidelity, plans), limit_percent / 100.0
    answers = [answer_of(lost, limit), answer_of(shift, MAX_CONFIDENCE_SHIFT)]
    counts = _boxes_per_picture(fidelity)
    needed = _most_needed(
        _needed(lost, limit, counts, missed=missed_of(plans)) if answers[0] == "cannot tell" else 0,
        _needed(shift, MAX_CONFIDENCE_SHIFT, counts, exact=False) if answers[1] == "cannot tell" else 0,
    )
    metric = (
        f"lost boxes {100 * lost.value:.2f} % of {fidelity.boxes} (limit {limit_percent:g} %, 95 % limits "
        f"{100 * lost.low:.2f} to {100 * lost.high:.2f} %), confidence shift {fidelity.confidence_shift:+.4f} "
        f"(limit {MAX_CONFIDENCE_SHIFT:g})"
    )
    return LossAnswer(worst(answers), metric, needed)


def lost_bounds(fidelity: Fidelity, plans: int = 1) -> Bounds:
    """Return the share of lost boxes, 0..1, with its one-sided limits."""
    boxes, lost = _boxes_per_picture(fidelity), fidelity.picture_lost
    lost = lost or _spread(round(fidelity.lost * fidelity.boxes), len(boxes))
    return share_limits(lost, boxes, missed=missed_of(plans))


def map_answer(loss: MapLoss, metric: str, limit_percent: float) -> LossAnswer:
    """Judge the loss of mAP; ``metric`` is its sentence so far."""
    bounds = Bounds(loss.percent / 100.0, loss.low / 100.0, loss.high / 100.0)
    limit = limit_percent / 100.0
    answer = answer_of(bounds, limit)
    counts = [1] * loss.boxes
    needed = _needed(bounds, limit, counts) if answer == "cannot tell" else 0
    limits = f"95 % limits {loss.low:.2f} to {loss.high:.2f} % from {loss.boxes} labelled boxes"
    return LossAnswer(answer, f"{metric} (limit {limit_percent:g} %, {limits})", needed)


def time_answer(latency: Latency) -> Answer:
    """Judge the paired ratio; the medians of the same rounds must agree with it, else more rounds are needed."""
    medians = latency.p50_ms / latency.float_p50_ms if latency.float_p50_ms > 0.0 else latency.ratio
    if latency.ratio_high <= MAX_SLOWDOWN and medians <= MAX_SLOWDOWN:
        return "yes"
    return "no" if latency.ratio_low > MAX_SLOWDOWN and medians > 1.0 else "cannot tell"


def time_words(latency: Latency) -> str:
    """Return the answer on time as the verdict words it."""
    answer = time_answer(latency)
    if answer == "yes":
        faster = latency.ratio_high < 1.0 and not latency.p50_ms > latency.float_p50_ms
        percent = round(100 * (MAX_SLOWDOWN - 1.0))
        return "faster than float" if faster else f"as fast as float within {percent} %"
    if answer == "no":
        return "slower than float"
    return "cannot tell whether it is slower: this machine is too busy"


def _shift_bounds(fidelity: Fidelity, plans: int) -> Bounds:
    """Return |mean confidence shift| with its limits; without counts per picture the value alone."""
    shift = fidelity.confidence_shift
    if not fidelity.picture_shift:
        return Bounds(abs(shift), abs(shift), abs(shift))
    pairs = zip(fidelity.picture_boxes, fidelity.picture_lost, strict=True)
    drawn = ratio_limits(
        fidelity.picture_shift, [boxes - lost for boxes, lost in pairs], missed=missed_of(plans)
    )
    nearest = max(drawn.low, -drawn.high, 0.0)
    return Bounds(abs(shift), nearest, max(abs(drawn.low), abs(drawn.high)))


def _boxes_per_picture(fidelity: Fidelity) -> Sequence[int]:
    """Return the boxes of each picture; where they were not counted, each box is a picture of its own."""
    return fidelity.picture_boxes or [1] * fidelity.boxes


def _spread(lost: int, pictures: int) -> tuple[int, ...]:
    return (1,) * lost + (0,) * (pictures - lost)


def _fewest_boxes(limit: float) -> int | None:
    """Return how many independent boxes, none of them lost, are a yes."""
    return _first(lambda n: exact_limits(0.0, n).high <= UPPER * limit, 1)


def _needed(
    bounds: Bounds, limit: float, counts: Sequence[int], *, exact: bool = True, missed: float = MISSED
) -> int | None:
    """Return how many boxes more would decide if the loss stays as it is; None for more than ``MOST_BOXES``."""
    have = sum(counts)
    right = bounds.value <= limit
    room = UPPER * limit - bounds.value if right else bounds.value - limit
    width = bounds.high - bounds.value if right else bounds.value - bounds.low
    if room <= 0.0:
        return None
    # A bootstrap's width falls with the root of the number; exact limits are computed for each number.
    total: int | None = math.ceil(have * max(1.0, width / room) ** 2)
    if exact:
        worth = independent_boxes(counts) / have

        def decides(n: int) -> bool:
            limits = exact_limits(bounds.value, n * worth, missed=missed)
            return limits.high <= UPPER * limit if right else limits.low > limit

        first, here = _first(decides, have + 1), exact_limits(bounds.value, have * worth, missed=missed)
        wider = bounds.high > here.high + 1e-9 if right else bounds.low < here.low - 1e-9
        total = first if first is None or total is None or not wider else max(first, total)
    return None if total is None or total > MOST_BOXES else max(total - have, 1)


def _first(decides: Callable[[int], bool], start: int) -> int | None:
    """Return the first number from ``start`` that decides, by doubling and halving; None above ``MOST_BOXES``."""
    low, high = start - 1, start
    while not decides(high):
        low, high = high, 2 * high
        if high > MOST_BOXES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


def _most_needed(*needed: int | None) -> int | None:
    return None if None in needed else max(number for number in needed if number is not None)
