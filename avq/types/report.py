"""Measurements and findings that the gate and the report use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Accepted = Literal["yes", "no", "pending"]
#: An answer of the gate.
Answer = Literal["yes", "no", "cannot tell"]
#: The answer on time; "not judged" where the gate left time out, "pending-target" until it is measured.
TimeAnswer = Literal["yes", "no", "cannot tell", "not judged", "pending-target"]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Agreement of the quantized with the float model on the same pictures, in boxes; needs no labels.

    Attributes:
        images: pictures compared.
        boxes: float boxes with a score of at least 0.5 that were matched against the quantized model's.
        lost: share of them, 0..1, with no box of the same class, IoU >= 0.5 and at least half the score.
        confidence_shift: mean score difference (quantized - float) over the matched boxes.
        map: mAP50-95 with the float model's boxes (score >= 0.3) as truth; nan when not computed.
        ap50: AP at IoU 0.5 with the same truth; nan when not computed.
        picture_boxes, picture_lost: boxes and lost boxes, per picture; empty where not counted.
        picture_shift: sum of the score differences of the matched boxes, per picture.
    """

    images: int
    boxes: int
    lost: float
    confidence_shift: float
    map: float = float("nan")
    ap50: float = float("nan")
    picture_boxes: tuple[int, ...] = ()
    picture_lost: tuple[int, ...] = ()
    picture_shift: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanScore:
    """Deviation of a plan from the float model on the held-out pictures, without runtime optimisations.

    Attributes:
        fidelity: in boxes; None when the head is not decoded.
        sqnr_db: per graph output, signal to quantization-noise ratio in decibel.
        map_drop_percent: mAP lost against labels, in percent of the float model's; None where none were given
            or the build did not request it.
    """

    fidelity: Fidelity | None
    sqnr_db: Mapping[str, float]
    map_drop_percent: float | None = None

    @property
    def has_loss(self) -> bool:
        """Whether boxes are lost or scores moved; without a decoder, whether there is noise."""
        fidelity, drop = self.fidelity, self.map_drop_percent or 0.0
        if fidelity is None:
            return bool(self.sqnr_db)
        return fidelity.lost > 0.0 or abs(fidelity.confidence_shift) > 0.01 or drop > 0.0

    @property
    def badness(self) -> float:
        """Ranking number, lower is better: lost share plus confidence shift, then SQNR."""
        noise = float(10.0 ** (-min(self.sqnr_db.values(), default=0.0) / 20.0))
        if self.fidelity is None:
            return noise
        return self.fidelity.lost + abs(self.fidelity.confidence_shift) + 1e-3 * noise


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured time of one engine, paired with the fastest float engine; all numbers are of the same rounds.

    Attributes:
        p50_ms: median of single inferences, milliseconds.
        p99_ms: 99th percentile of single inferences, milliseconds.
        ratio: median of time(this) / time(float).
        ratio_low: lower end of its 95 % interval.
        ratio_high: upper end of its 95 % interval.
        float_engine: name and precision of the float engine.
        float_p50_ms: median of the float engine, milliseconds; nan where it was not measured.
        rounds: number of paired rounds; 0 where nothing was measured.
    """

    p50_ms: float
    p99_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    float_engine: str
    float_p50_ms: float = float("nan")
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan that was built, checked and timed on the fastest engine that matches its reference.

    Attributes:
        engine: engine, encoding and precision of the float parts.
        score: deviation of this engine's outputs from the float model, on the held-out pictures.
        latency: paired with the fastest float engine, and with every plan of the same call.
    """

    engine: str
    score: PlanScore
    latency: Latency


@dataclass(frozen=True, slots=True)
class Accuracy:
    """COCO metrics against labels.

    Attributes:
        map, ap50: mAP50-95 and AP at IoU 0.5.
        per_class: category -> AP50-95.
        images: pictures evaluated.
        skipped: label categories the model cannot name.
    """

    map: float
    ap50: float
    per_class: Mapping[str, float]
    images: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MapLoss:
    """Relative loss of mAP against labels, in percent, with its one-sided 95 % limits.

    Attributes:
        percent: of the float model's mAP; negative where the bundle is better.
        low, high: limits.
        boxes: labelled boxes it stands on.
    """

    percent: float
    low: float
    high: float
    boxes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark of a check; any "error" rejects a bundle."""

    severity: str  # "error" | "warning" | "info"
    code: str
    what: str
    seen: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision of the gate.

    Attributes:
        accepted: "pending" when every check passed and the time on the target is still to be measured.
        metric: the accuracy in one sentence.
        reasons: results of all checks, in their order.
        fixes: what to do about the failed ones.
        accuracy, time: the two answers.
        lost_interval: one-sided 95 % limits (low, high) of the share of lost boxes; None without boxes.
    """

    accepted: Accepted
    metric: str
    reasons: tuple[str, ...]
    fixes: tuple[str, ...] = field(default=())
    accuracy: Answer = "cannot tell"
    time: TimeAnswer = "not judged"
    lost_interval: tuple[float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return self.accepted != "no"


# A chart a strategy wants in the report: points on two axes, drawn by the host.


@dataclass(frozen=True, slots=True)
class FigurePoint:
    """One point; ``x_low`` and ``x_high`` are its 95 % interval, ``chosen`` marks the decision."""

    x: float
    y: float
    label: str = ""
    chosen: bool = False
    x_low: float | None = None
    x_high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together, in drawing order; ``line`` joins them."""

    name: str
    points: tuple[FigurePoint, ...]
    line: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with named axes, units in the labels.

    Attributes:
        title: heading of its section in the report.
        x_label, y_label: with units, as "time / float" or "lost boxes, %".
        series: drawn in order.
        lead: one sentence that says how to read it.
        y_limit: a limit drawn as a horizontal line, such as the gate's; None for none.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    lead: str = ""
    y_limit: float | None = None
