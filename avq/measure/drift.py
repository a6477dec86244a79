"""Input drift: whether pictures differ from the calibration pictures, by statistics of a bundle's drift probe.

A picture's score is the mean of its three largest deviations, each ratio in standard deviations from its mean over
the reference pictures, after asin(sqrt(ratio)), which equalises the variance of shares of any size. The score of
every reference picture comes from a fit on the other nine folds of ten (cross-conformal scores: Vovk,
"Cross-conformal predictors", 2015).

The alarm is conformal. With n reference scores and the k-th smallest as threshold, the number of W further pictures
above it is beta-binomial with parameters W, n + 1 - k and k for any distribution of the scores, if the pictures are
exchangeable with the reference. The smallest count whose probability is below FALSE_ALARM_RATE is therefore an exact
limit for split scores, and holds for cross-conformal ones up to the differences of ten nearly equal fits.
Neighbouring frames of one drive are not exchangeable: update the monitor with frames that are seconds apart.

Pure functions without files and engines: builds, ``avq eval --drift`` and the daemon use them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import msgspec
import numpy as np

from avq.errors import BundleError, DataError
from avq.types import F64, AnyArray
from avq.types.arrays import ArrayRecord

#: Outputs of the probe are named prefix + tensor (+ "@node:input" for a single reader's edge). Saturation: share of
#: values outside the calibrated range. Occupancy: share outside its inner eighth, which falls in dark scenes.
SATURATION_PREFIX = "saturation/"
OCCUPANCY_PREFIX = "occupancy/"
#: Smallest number of reference pictures.
MIN_REFERENCE = 10
#: Probability that one normal picture lies above the threshold. A small value detects large shifts (night) with fewer
#: pictures, a large one detects small shifts (low sun, another camera) that make many pictures slightly unusual.
PICTURE_RATE = 0.2
#: Probability that a window of normal pictures is reported as drift.
FALSE_ALARM_RATE = 0.001
#: Pictures per decision of a monitor.
WINDOW = 40
_FOLDS = 10
_WORST = 3
#: Lower bound on the asin(sqrt) scale: a constant ratio must not make every change an outlier.
_MIN_SPREAD = 0.005
_FORMAT = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Content of drift.json."""

    format: int
    names: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class DriftReference(ArrayRecord):
    """Distribution of the probe's ratios over the calibration pictures.

    Attributes:
        names: outputs of the probe, (K,) sorted.
        centre: (K,) mean of asin(sqrt(ratio)).
        spread: (K,) standard deviation of asin(sqrt(ratio)).
        mean: (K,) mean of the ratios.
        low: (K,) 5 % quantile of the ratios.
        high: (K,) 95 % quantile of the ratios.
        scores: (n,) score of each reference picture, ascending.
    """

    names: tuple[str, ...]
    centre: F64
    spread: F64
    mean: F64
    low: F64
    high: F64
    scores: F64

    def __post_init__(self) -> None:
        self._freeze("centre", "spread", "mean", "low", "high", "scores")

    @property
    def pictures(self) -> int:
        return len(self.scores)

    @property
    def rank(self) -> int:
        """Position k of the threshold among the ascending scores, from 1."""
        return min(self.pictures, math.ceil((self.pictures + 1) * (1 - PICTURE_RATE)))

    @property
    def threshold(self) -> float:
        return float(self.scores[self.rank - 1])

    @property
    def usual_share(self) -> float:
        """Mean saturation of the reference pictures; see ``saturation``."""
        return saturation(dict(zip(self.names, self.mean.tolist(), strict=True)))

    @property
    def usual_occupancy(self) -> float:
        """Mean occupancy of the reference pictures; see ``occupancy``."""
        return occupancy(dict(zip(self.names, self.mean.tolist(), strict=True)))

    def deviations(self, ratios: Mapping[str, float]) -> F64:
        """Return (K,) signed distances from the centre in standard deviations; infinite for NaN and infinity."""
        values = np.array([float(ratios[name]) for name in self.names], np.float64)
        deviations = (_variance_stabilised(values) - self.centre) / self.spread
        deviations[~np.isfinite(values)] = np.inf
        return deviations

    def score(self, ratios: Mapping[str, float]) -> float:
        """Return the drift score of one picture. Raises KeyError when an output of the probe is missing."""
        return float(_scores(self.deviations(ratios)[None])[0])

    def limit(self, pictures: int, rate: float = FALSE_ALARM_RATE) -> int | None:
        """Return the smallest count of ``pictures`` above the threshold that is drift; None when all are too few."""
        tails = self._tails(pictures)
        return next((count for count, chance in enumerate(tails) if chance <= rate), None)

    def chance(self, beyond: int, pictures: int) -> float:
        """Return the probability that at least ``beyond`` of ``pictures`` normal ones lie above the threshold."""
        return float(self._tails(pictures)[beyond])

    def _tails(self, pictures: int) -> list[float]:
        """Return P(count >= c) for c = 0 ... ``pictures``, beta-binomial."""
        a, b = self.pictures + 1 - self.rank, self.rank
        chances = [
            math.exp(_log_choose(pictures, c) + _log_beta(c + a, pictures - c + b) - _log_beta(a, b))
            for c in range(pictures + 1)
        ]
        return [min(1.0, math.fsum(chances[c:])) for c in range(pictures + 1)]

    def to_json(self) -> bytes:
        """Encode as a bundle's drift.json."""
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
        """Decode drift.json. Raises BundleError when it is damaged."""
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


def saturation(ratios: Mapping[str, float]) -> float:
    """Return the share of activations outside the calibrated ranges, as the mean over the watched tensors.

    Args:
        ratios: the probe's outputs for one picture.

    Returns:
        A share in 0..1; NaN without saturation outputs.
    """
    return _mean_of(ratios, SATURATION_PREFIX)


def occupancy(ratios: Mapping[str, float]) -> float:
    """Return the share of activations outside the inner eighth of their ranges, as the mean over the tensors.

    Args:
        ratios: the probe's outputs for one picture.

    Returns:
        A share in 0..1; NaN without occupancy outputs.
    """
    return _mean_of(ratios, OCCUPANCY_PREFIX)


def _mean_of(ratios: Mapping[str, float], prefix: str) -> float:
    values = [float(value) for name, value in ratios.items() if name.startswith(prefix)]
    return math.fsum(values) / len(values) if values else math.nan


def fit_reference(rows: Sequence[Mapping[str, float]]) -> DriftReference:
    """Fit the reference to the probe's outputs on every reference picture.

    Raises:
        DataError: there are fewer than MIN_REFERENCE pictures, or no ratios.
    """
    names = tuple(sorted(rows[0])) if rows else ()
    if len(rows) < MIN_REFERENCE or not names:
        raise DataError(
            "too few pictures to fit the drift reference",
            seen=f"{len(rows)} pictures, {len(names)} ratios",
            fix=f"calibrate on at least {MIN_REFERENCE} pictures",
        )
    ratios = np.array([[float(row[name]) for name in names] for row in rows], np.float64)
    stabilised = _variance_stabilised(ratios)
    folds = np.arange(len(rows)) % min(_FOLDS, len(rows))
    scores = np.empty(len(rows))
    for fold in range(int(folds.max()) + 1):
        centre, spread = _fit(stabilised[folds != fold])
        scores[folds == fold] = _scores((stabilised[folds == fold] - centre) / spread)
    low, high = np.quantile(ratios, [0.05, 0.95], axis=0)
    centre, spread = _fit(stabilised)
    return DriftReference(names, centre, spread, ratios.mean(axis=0), low, high, np.sort(scores))


@dataclass(frozen=True, slots=True)
class DriftState:
    """State of a monitor after a picture.

    Attributes:
        score: drift score of this picture.
        beyond: whether the score lies above the threshold.
        seen: pictures in the current window.
        beyond_count: pictures of the current window above the threshold.
        limit: count at which a window is drift.
        drifting: the current window has reached the limit, or the last complete one had.
        unusual: names of the ratios that deviate most in this picture, worst first.
        share: activations outside the calibrated ranges, 0..1, mean over the pictures of the current window.
        occupancy: activations outside the inner eighth of their ranges, 0..1, mean over the same pictures.
    """

    score: float
    beyond: bool
    seen: int
    beyond_count: int
    limit: int
    drifting: bool
    unusual: tuple[str, ...]
    share: float
    occupancy: float


class DriftMonitor:
    """Count pictures above the threshold in consecutive windows.

    The count of a window only grows, so the alarm is raised as soon as it reaches the limit, and the probability of a
    false alarm stays FALSE_ALARM_RATE per window. It ends with the first complete window below the limit.

    Raises:
        DataError: no count of a window this short is significant.
    """

    def __init__(
        self, reference: DriftReference, *, window: int = WINDOW, false_alarm_rate: float = FALSE_ALARM_RATE
    ) -> None:
        limit = reference.limit(window, false_alarm_rate)
        if limit is None:
            raise DataError(
                "the drift window is too short for its false alarm rate",
                seen=f"{window} pictures at a false alarm rate of {false_alarm_rate:g}",
                fix="use a longer window",
            )
        self._reference, self._window, self._limit = reference, window, limit
        self._seen = self._beyond = 0
        self._shares: list[float] = []
        self._occupancies: list[float] = []
        self._alarm = False

    def update(self, ratios: Mapping[str, float]) -> DriftState:
        """Add the probe's outputs of one picture. Raises KeyError when one is missing."""
        reference = self._reference
        if self._seen == self._window:
            self._seen = self._beyond = 0
            self._shares, self._occupancies = [], []
        deviations = reference.deviations(ratios)
        score = float(_scores(deviations[None])[0])
        beyond = score > reference.threshold
        self._seen += 1
        self._beyond += beyond
        self._shares.append(saturation(ratios))
        self._occupancies.append(occupancy(ratios))
        if self._beyond >= self._limit:
            self._alarm = True
        elif self._seen == self._window:
            self._alarm = False
        worst = np.argsort(-np.abs(deviations))[:_WORST]
        unusual = tuple(reference.names[i] for i in worst)
        return DriftState(
            score=score,
            beyond=beyond,
            seen=self._seen,
            beyond_count=self._beyond,
            limit=self._limit,
            drifting=self._alarm,
            unusual=unusual,
            share=math.fsum(self._shares) / self._seen,
            occupancy=math.fsum(self._occupancies) / self._seen,
        )


class UnusualRatio(TypedDict):
    """One ratio of a drift report: mean and 5 to 95 % range of the reference, mean here.

    ``deviation`` is in standard deviations.
    """

    ratio: str
    usual: float
    usual_low: float
    usual_high: float
    here: float
    deviation: float


@dataclass(frozen=True, eq=False)
class DriftVerdict(ArrayRecord):
    """A set of pictures compared with the reference.

    Attributes:
        ratios: (n, K) outputs of the probe.
        scores: (n,) drift score of each picture, in the order given.
        beyond: number of pictures above the threshold.
        limit: count that is drift; None when the set is too small.
        chance: probability of so many among normal pictures.
    """

    reference: DriftReference
    ratios: F64
    scores: F64

    def __post_init__(self) -> None:
        self._freeze("ratios", "scores")

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
    def share(self) -> float:
        """Activations outside the calibrated ranges, 0..1, mean over the pictures."""
        return math.fsum(self.shares) / len(self.shares)

    @property
    def shares(self) -> list[float]:
        """Activations outside the calibrated ranges of each picture, 0..1, in the order given."""
        return [saturation(row) for row in self._rows()]

    @property
    def occupancy(self) -> float:
        """Activations outside the inner eighth of their ranges, 0..1, mean over the pictures."""
        return math.fsum(occupancy(row) for row in self._rows()) / len(self.ratios)

    def _rows(self) -> list[dict[str, float]]:
        return [dict(zip(self.reference.names, row, strict=True)) for row in self.ratios.tolist()]

    @property
    def drifting(self) -> bool:
        return self.limit is not None and self.beyond >= self.limit

    def unusual(self, count: int = 8) -> list[UnusualRatio]:
        """Return the ratios that deviate most, worst first."""
        reference = self.reference
        deviations = (_variance_stabilised(self.ratios).mean(axis=0) - reference.centre) / reference.spread
        worst = np.argsort(-np.abs(deviations), kind="stable")[:count]
        return [
            {
                "ratio": reference.names[i],
                "usual": float(reference.mean[i]),
                "usual_low": float(reference.low[i]),
                "usual_high": float(reference.high[i]),
                "here": float(self.ratios[:, i].mean()),
                "deviation": float(deviations[i]),
            }
            for i in worst
        ]


def judge_drift(reference: DriftReference, rows: Sequence[Mapping[str, float]]) -> DriftVerdict:
    """Compare a set of pictures with the reference, as one window. Raises DataError for an empty set."""
    if not rows:
        raise DataError("there are no pictures to check for drift", fix="name a folder with pictures")
    ratios = np.array([[float(row[name]) for name in reference.names] for row in rows], np.float64)
    return DriftVerdict(reference, ratios, np.array([reference.score(row) for row in rows], np.float64))


def _fit(stabilised: F64) -> tuple[F64, F64]:
    return stabilised.mean(axis=0), np.maximum(stabilised.std(axis=0, ddof=1), _MIN_SPREAD)


def _scores(deviations: F64) -> F64:
    """Return (n,) mean of the largest absolute deviations of each row of (n, K)."""
    worst = np.sort(np.abs(deviations), axis=1)[:, -_WORST:]
    return np.asarray(worst.mean(axis=1), np.float64)


def _variance_stabilised(ratios: AnyArray) -> F64:
    """Transform shares (0..1) to a scale where their sampling variance is equal."""
    return np.asarray(np.arcsin(np.sqrt(np.clip(np.nan_to_num(ratios), 0.0, 1.0))), np.float64)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _broken(seen: str) -> BundleError:
    return BundleError("drift.json is damaged", seen=seen[:200], fix="copy or build the bundle again")
