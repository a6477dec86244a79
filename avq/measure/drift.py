"""Has the scene left what the ranges were calibrated on? Statistics over the ratios of a bundle's probe.

A picture's score is the mean of its three largest deviations, each ratio in spreads from its centre over the
reference pictures, after asin(sqrt(ratio)), which gives shares of any size one variance. The score of every
reference picture comes from the nine tenths of them it is not in (cross-conformal scores: Vovk, "Cross-conformal
predictors", 2015).

The alarm is conformal. With n reference scores and the k-th smallest as threshold, the number of W further pictures
above it is beta-binomial with parameters W, n + 1 - k and k whatever the scores' distribution, as long as the
pictures are exchangeable with the reference: so the smallest count whose chance is below FALSE_ALARM_RATE is an
exact limit for split scores, and holds for cross-conformal ones up to the differences of ten nearly equal
fits. Neighbouring frames of one drive are not exchangeable: give the monitor frames that are seconds apart.

Pure numbers, no files, no engine: builds, ``avq eval --drift`` and the daemon use the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np

from avq.errors import BundleError, DataError
from avq.types import F64, AnyArray

#: Fewer reference pictures say nothing about what is usual.
MIN_REFERENCE = 10
#: Wanted chance that one usual picture lies above the threshold. A small one tells a night from fewer pictures, a
#: large one tells small shifts (low sun, another camera) from as many: many pictures a little unusual.
PICTURE_RATE = 0.2
#: Chance that a window of usual pictures is called drift.
FALSE_ALARM_RATE = 0.001
#: Pictures per decision of a monitor.
WINDOW = 40
_FOLDS = 10
_WORST = 3
# On the asin(sqrt) scale; a ratio that was the same everywhere must not make the smallest change unheard of.
_LEAST_SPREAD = 0.005
_FORMAT = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """drift.json."""

    format: int
    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class DriftReference:
    """What the probe's ratios are on the pictures a bundle was calibrated on.

    Attributes:
        names: of the probe's outputs, (K,) sorted.
        centre, spread: (K,) mean and standard deviation of asin(sqrt(ratio)).
        mean, low, high: (K,) of the ratios themselves: mean, 5 % and 95 % quantile.
        scores: (n,) one per reference picture, ascending.
    """

    names: tuple[str, ...]
    centre: F64
    spread: F64
    mean: F64
    low: F64
    high: F64
    scores: F64

    @property
    def pictures(self) -> int:
        return len(self.scores)

    @property
    def rank(self) -> int:
        """k: which of the ascending scores is the threshold."""
        return min(self.pictures, math.ceil((self.pictures + 1) * (1 - PICTURE_RATE)))

    @property
    def threshold(self) -> float:
        return float(self.scores[self.rank - 1])

    def deviations(self, ratios: Mapping[str, float]) -> F64:
        """(K,) signed distances from the centre in spreads; infinite for what is not a number."""
        values = np.array([float(ratios[name]) for name in self.names], np.float64)
        found = (_steady(values) - self.centre) / self.spread
        found[~np.isfinite(values)] = np.inf
        return found

    def score(self, ratios: Mapping[str, float]) -> float:
        """How unusual one picture is. Raises KeyError when an output of the probe is missing."""
        return float(_scores(self.deviations(ratios)[None])[0])

    def limit(self, pictures: int, rate: float = FALSE_ALARM_RATE) -> int | None:
        """The least number of ``pictures`` above the threshold that is drift; None when even all would not be."""
        tails = self._tails(pictures)
        return next((count for count, chance in enumerate(tails) if chance <= rate), None)

    def chance(self, beyond: int, pictures: int) -> float:
        """That at least ``beyond`` of ``pictures`` usual ones lie above the threshold."""
        return float(self._tails(pictures)[beyond])

    def _tails(self, pictures: int) -> list[float]:
        """P(count >= c) for c = 0 ... ``pictures``, beta-binomial."""
        a, b = self.pictures + 1 - self.rank, self.rank
        chances = [
            math.exp(_log_choose(pictures, c) + _log_beta(c + a, pictures - c + b) - _log_beta(a, b))
            for c in range(pictures + 1)
        ]
        return [min(1.0, math.fsum(chances[c:])) for c in range(pictures + 1)]

    def to_json(self) -> bytes:
        """The bytes of a bundle's drift.json."""
        arrays = (self.centre, self.spread, self.mean, self.low, self.high, self.scores)
        centre, spread, mean, low, high, scores = (tuple(float(f"{v:.6g}") for v in a) for a in arrays)
        file = _File(
            format=_FORMAT,
            names=self.names,
            centre=centre,
            spread=spread,
            mean=mean,
            low=low,
            high=high,
            scores=scores,
        )
        return msgspec.json.encode(file)

    @classmethod
    def from_json(cls, raw: bytes) -> DriftReference:
        """The inverse; raises BundleError when the bytes are no drift reference."""
        try:
            file = msgspec.json.decode(raw, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _broken(str(error)) from None
        columns = (file.centre, file.spread, file.mean, file.low, file.high)
        sound = file.format == _FORMAT and all(len(c) == len(file.names) for c in columns)
        if not sound or not file.names or not file.scores or min(file.spread) <= 0:
            raise _broken(f"format {file.format}, {len(file.names)} names, {len(file.scores)} scores")
        centre, spread, mean, low, high = (np.array(c, np.float64) for c in columns)
        return cls(file.names, centre, spread, mean, low, high, np.sort(np.array(file.scores, np.float64)))


def reference_of(rows: Sequence[Mapping[str, float]]) -> DriftReference:
    """Learn the reference from the probe's outputs on every reference picture.

    Raises DataError for fewer than MIN_REFERENCE pictures, or when there are no ratios.
    """
    names = tuple(sorted(rows[0])) if rows else ()
    if len(rows) < MIN_REFERENCE or not names:
        raise DataError(
            "too little to learn what is usual",
            seen=f"{len(rows)} pictures, {len(names)} ratios",
            fix=f"calibrate on at least {MIN_REFERENCE} pictures",
        )
    ratios = np.array([[float(row[name]) for name in names] for row in rows], np.float64)
    steady = _steady(ratios)
    folds = np.arange(len(rows)) % min(_FOLDS, len(rows))
    scores = np.empty(len(rows))
    for fold in range(int(folds.max()) + 1):
        centre, spread = _fit(steady[folds != fold])
        scores[folds == fold] = _scores((steady[folds == fold] - centre) / spread)
    low, high = np.quantile(ratios, [0.05, 0.95], axis=0)
    centre, spread = _fit(steady)
    return DriftReference(names, centre, spread, ratios.mean(axis=0), low, high, np.sort(scores))


@dataclass(frozen=True, slots=True)
class DriftState:
    """What a monitor knows after a picture.

    Attributes:
        score: of this picture; beyond: whether it lies above the threshold.
        seen, beyond_count: pictures of the current window, and those above the threshold.
        limit: the count that is drift.
        drifting: the current window has reached the limit, or the last whole one had.
        unusual: names of the ratios that deviate most in this picture, worst first.
    """

    score: float
    beyond: bool
    seen: int
    beyond_count: int
    limit: int
    drifting: bool
    unusual: tuple[str, ...]


class DriftMonitor:
    """Counts pictures above the threshold in windows that do not overlap.

    Within a window the count only grows, so an alarm may be raised as soon as it reaches the limit and the chance of
    a false one stays FALSE_ALARM_RATE per window. It ends with the first whole window below the limit.
    """

    def __init__(
        self, reference: DriftReference, *, window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
    ) -> None:
        limit = reference.limit(window, false_alarm_rate)
        if limit is None:
            raise DataError(
                "the window is too short to tell drift from chance",
                seen=f"{window} pictures at a false alarm rate of {false_alarm_rate:g}",
                fix="take a longer window",
            )
        self._reference, self._window, self._limit = reference, window, limit
        self._seen = self._beyond = 0
        self._alarm = False

    def update(self, ratios: Mapping[str, float]) -> DriftState:
        """Take the probe's outputs of one more picture. Raises KeyError when one is missing."""
        reference = self._reference
        if self._seen == self._window:
            self._seen = self._beyond = 0
        deviations = reference.deviations(ratios)
        score = float(_scores(deviations[None])[0])
        beyond = score > reference.threshold
        self._seen += 1
        self._beyond += beyond
        if self._beyond >= self._limit:
            self._alarm = True
        elif self._seen == self._window:
            self._alarm = False
        worst = np.argsort(-np.abs(deviations))[:_WORST]
        unusual = tuple(reference.names[i] for i in worst)
        return DriftState(score, beyond, self._seen, self._beyond, self._limit, self._alarm, unusual)


@dataclass(frozen=True)
class DriftVerdict:
    """A set of pictures against the reference.

    Attributes:
        scores: (n,) per picture, in the order given.
        beyond: how many lie above the threshold; limit: how many are drift, None when the set is too small.
        chance: of so many among usual pictures.
    """

    reference: DriftReference
    ratios: F64
    scores: F64

    @cached_property
    def beyond(self) -> int:
        return int((self.scores > self.reference.threshold).sum())

    @cached_property
    def limit(self) -> int | None:
        return self.reference.limit(len(self.scores))

    @property
    def chance(self) -> float:
        return self.reference.chance(self.beyond, len(self.scores))

    @property
    def drifting(self) -> bool:
        return self.limit is not None and self.beyond >= self.limit

    def unusual(self, count: int = 8) -> list[dict[str, object]]:
        """The ratios that moved most, as rows: usual mean and range, mean here, deviation in spreads."""
        ours = self.reference
        moved = (_steady(self.ratios).mean(axis=0) - ours.centre) / ours.spread
        worst = np.argsort(-np.abs(moved), kind="stable")[:count]
        return [
            {
                "ratio": ours.names[i],
                "usual": float(ours.mean[i]),
                "usual_low": float(ours.low[i]),
                "usual_high": float(ours.high[i]),
                "here": float(self.ratios[:, i].mean()),
                "deviation": float(moved[i]),
            }
            for i in worst
        ]


def judge_set(reference: DriftReference, rows: Sequence[Mapping[str, float]]) -> DriftVerdict:
    """One window over the whole set. Raises DataError for an empty one."""
    if not rows:
        raise DataError("no pictures to look at", fix="name a folder with pictures")
    ratios = np.array([[float(row[name]) for name in reference.names] for row in rows], np.float64)
    return DriftVerdict(reference, ratios, np.array([reference.score(row) for row in rows], np.float64))


def _fit(steady: F64) -> tuple[F64, F64]:
    return steady.mean(axis=0), np.maximum(steady.std(axis=0, ddof=1), _LEAST_SPREAD)


def _scores(deviations: F64) -> F64:
    """(n,) mean of the largest absolute deviations of each row."""
    worst = np.sort(np.abs(deviations), axis=1)[:, -_WORST:]
    return np.asarray(worst.mean(axis=1), np.float64)


def _steady(ratios: AnyArray) -> F64:
    """Shares on a scale where their sampling noise is equal."""
    return np.asarray(np.arcsin(np.sqrt(np.clip(np.nan_to_num(ratios), 0.0, 1.0))), np.float64)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _broken(seen: str) -> BundleError:
    return BundleError("drift.json is damaged", seen=seen[:200], fix="copy or build the bundle again")
