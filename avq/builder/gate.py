"""The gate: may this bundle serve? Pure decisions over measured numbers, in three answers for accuracy and for time.

Nothing here may import onnx: ``avq compile`` judges engines on machines without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from avq.builder.answers import (
    MAX_CONFIDENCE_SHIFT,
    MAX_SLOWDOWN,
    LossAnswer,
    boxes_answer,
    lost_bounds,
    map_answer,
    time_answer,
    time_words,
    worst,
)
from avq.types import Accepted, Accuracy, Answer, Fidelity, Finding, Latency, MapLoss, TimeAnswer, Verdict

if TYPE_CHECKING:
    from avq.builder.lift import Parity

DEFAULT_MAP_DROP_PERCENT = 2.0
DEFAULT_LOST_PERCENT = 1.0
MIN_SQNR_DB = 20.0
#: A float engine in FP32 with less noise than this computes what the float model computes.
MIN_EQUAL_DB = 60.0
CANNOT_TELL = "cannot tell: options changed the imported plan, and without pictures nothing was compared"
GIVE_PICTURES = "--data DIR gives pictures: the changed plan is compared with the float model on them"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of accuracy and time.

    Attributes:
        max_drop_percent: None takes the default of the metric in use.
        budget_ms: limit of the engine's p50, or None.
        strategies: registered ones; only these are suggested as fixes.
        judge_time: False leaves the time out of the verdict (``--gate accuracy``).
    """

    max_drop_percent: float | None = None
    budget_ms: float | None = None
    strategies: tuple[str, ...] = ("static", "mixed")
    judge_time: bool = True


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one bundle; absent ones are None.

    Attributes:
        float_accuracy, accuracy: against labels, on the pictures of the verdict.
        fidelity: against the float model's boxes.
        sqnr_db: worst graph output, for bundles without a decoder.
        latency: paired with the fastest float engine; None when the target cannot run here.
        is_float: the bundle holds the float model, which is its own reference.
        map_loss: relative loss of mAP with its limits; None without labels.
        runs_in: precision that the engine reports.
        plans: number of plans of which the search chose the best on pictures of the verdict; 1 where on others.
    """

    float_accuracy: Accuracy | None
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    sqnr_db: float | None
    latency: Latency | None
    is_float: bool = False
    map_loss: MapLoss | None = None
    runs_in: str = ""
    plans: int = 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the gate decides on.

    Attributes:
        measured: accuracy and time of the staged bundle.
        parity: comparison of an import with its source; None where nothing was imported.
        import_changed: options changed the imported plan: ``parity`` holds for the unchanged one.
        has_pictures: the outputs were compared on pictures, not on drawn inputs alone.
        findings: of lint, then of the plugins' hook ``check_bundle``; one error refuses the bundle.
        conclusions: sentences of the strategy.
        pending_target: the target compiles and times the bundle later, by ``avq compile``.
    """

    measured: Measured
    parity: Parity | None = None
    import_changed: bool = False
    has_pictures: bool = True
    findings: tuple[Finding, ...] = ()
    conclusions: tuple[str, ...] = ()
    pending_target: bool = False


@dataclass(frozen=True, slots=True)
class _Time:
    """The answer on time with its reasons and fixes."""

    answer: TimeAnswer
    reasons: tuple[str, ...] = ()
    fixes: tuple[str, ...] = ()


def judge(evidence: Evidence, limits: Limits) -> Verdict:
    """Check accuracy, time, parity and findings; every result is a reason, whether it passed or failed."""
    accuracy, time = accuracy_of(evidence, limits), _time(evidence, limits)
    parity, findings = evidence.parity, evidence.findings
    equal = parity is None or parity.equal
    sound = equal and all(finding.severity != "error" for finding in findings)
    return Verdict(
        accepted=_accepted(accuracy.answer, time.answer) if sound else "no",
        metric=accuracy.metric,
        reasons=(
            accuracy.metric,
            *_missing(accuracy),
            *_shared(evidence.measured),
            *time.reasons,
            *([parity.summary] if parity is not None else []),
            *evidence.conclusions,
            *map(_sentence, findings),
        ),
        fixes=(
            *dict.fromkeys([*_accuracy_fixes(accuracy, limits), *time.fixes]),
            *(finding.fix for finding in findings if finding.fix),
        ),
        accuracy=accuracy.answer,
        time=time.answer,
        lost_interval=_lost_interval(evidence.measured),
    )


def accuracy_of(evidence: Evidence, limits: Limits) -> LossAnswer:
    """Return the answer on accuracy: by labels, else by boxes, else by the outputs' noise."""
    measured, given = evidence.measured, limits.max_drop_percent
    if _is_source(measured):
        return LossAnswer("yes", f"equal to the float model within rounding: {_noise(measured.sqnr_db)}")
    if measured.accuracy is not None and measured.float_accuracy is not None:
        return _by_labels(measured, _default(given, DEFAULT_MAP_DROP_PERCENT))
    if measured.fidelity is not None:
        return boxes_answer(measured.fidelity, _default(given, DEFAULT_LOST_PERCENT), measured.plans)
    if evidence.import_changed and not evidence.has_pictures:
        return LossAnswer("cannot tell", CANNOT_TELL)
    if evidence.parity is not None and not evidence.import_changed:
        return _by_parity(evidence.parity, measured.sqnr_db)
    return _by_noise(measured.sqnr_db)


def _lost_interval(measured: Measured) -> tuple[float, float] | None:
    fidelity = measured.fidelity
    if fidelity is None or not fidelity.boxes:
        return None
    bounds = lost_bounds(fidelity, measured.plans)
    return bounds.low, bounds.high


def _accepted(accuracy: Answer, time: TimeAnswer) -> Accepted:
    if accuracy != "yes" or time in ("no", "cannot tell"):
        return "no"
    return "pending" if time == "pending-target" else "yes"


def _sentence(finding: Finding) -> str:
    seen = f" ({finding.seen})" if finding.seen else ""
    return f"{finding.severity} {finding.code}: {finding.what}{seen}"


def _missing(accuracy: LossAnswer) -> tuple[str, ...]:
    """Return what "cannot tell" stands on and how many boxes are missing."""
    if accuracy.answer != "cannot tell" or accuracy.needed == 0 or accuracy.metric == CANNOT_TELL:
        return ()
    if accuracy.needed is None:
        return ("cannot tell: no reasonable number of boxes would decide, the loss is too near the limit",)
    return (f"cannot tell: too few boxes, {accuracy.needed} more are needed if the loss stays as it is",)


def _shared(measured: Measured) -> tuple[str, ...]:
    """Return why the verdict claims no error rate: the search saw its pictures."""
    if measured.plans < 2 or measured.fidelity is None:
        return ()
    return (
        f"judged on pictures on which the search chose among {measured.plans} plans, too few are left: limits are "
        "wider for it, and no error rate is claimed",
    )


def _accuracy_fixes(accuracy: LossAnswer, limits: Limits) -> tuple[str, ...]:
    if accuracy.answer == "yes":
        return ()
    if accuracy.metric == CANNOT_TELL:
        return (GIVE_PICTURES,)
    others = _other_strategies(limits, "--strategy mixed keeps the sensitive operators float")
    if accuracy.answer == "no" or not accuracy.needed:
        return others
    return (f"give --data pictures with {accuracy.needed} more boxes of what the model detects", *others)


def _is_source(measured: Measured) -> bool:
    """Whether the bundle is the float model on an FP32 engine, with rounding alone between them."""
    exact = measured.is_float and measured.runs_in in ("", "f32")
    return exact and measured.sqnr_db is not None and measured.sqnr_db >= MIN_EQUAL_DB


def _by_labels(measured: Measured, limit: float) -> LossAnswer:
    reference, chosen = measured.float_accuracy, measured.accuracy
    assert reference is not None and chosen is not None
    if reference.map <= 0:
        return LossAnswer("no", f"the float model detects no labelled object (mAP {reference.map:.4f})")
    percent = round(100.0 * (reference.map - chosen.map) / reference.map, 4) + 0.0
    loss = measured.map_loss or MapLoss(percent, percent, percent, 0)
    sentence = (
        f"mAP {chosen.map:.4f} against float {reference.map:.4f} on {chosen.images} pictures: "
        f"loss {percent:.2f} %"
    )
    return map_answer(loss, sentence, limit)


def _noise(sqnr_db: float | None) -> str:
    return "nothing was compared" if sqnr_db is None else f"worst output SQNR {sqnr_db:.1f} dB"


def _by_noise(sqnr_db: float | None) -> LossAnswer:
    if sqnr_db is None:
        return LossAnswer("cannot tell", "nothing to compare: give pictures with --data", 0)
    metric = f"judged on SQNR only: {_noise(sqnr_db)} (limit {MIN_SQNR_DB:g} dB), boxes are not compared"
    return LossAnswer("yes" if sqnr_db >= MIN_SQNR_DB else "no", metric)


def _by_parity(parity: Parity, sqnr_db: float | None) -> LossAnswer:
    """A trained quantization defines its own answers: without boxes, equality with its source decides."""
    basis = "judged on parity with the source file alone: boxes are not compared"
    noise = f"; {_noise(sqnr_db)} against its float graph" if sqnr_db is not None else ""
    return LossAnswer("yes" if parity.equal else "no", basis + noise)


def _time(evidence: Evidence, limits: Limits) -> _Time:
    measured, latency = evidence.measured, evidence.measured.latency
    if latency is None:
        reason = "time was not measured here: avq compile measures it on the target"
        return _Time("pending-target" if evidence.pending_target else "not judged", (reason,))
    answers: list[Answer] = ["yes"]
    reasons: list[str] = []
    fixes: list[str] = []
    if not measured.is_float:
        answers.append(time_answer(latency))
        reasons.append(
            f"{latency.ratio:.2f}x the time of {latency.float_engine} "
            f"(95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}, paired): {time_words(latency)}"
        )
        fixes += _time_fixes(answers[-1], limits)
    if limits.budget_ms is not None:
        inside = latency.p50_ms <= limits.budget_ms
        answers.append("yes" if inside else "no")
        where = "inside" if inside else "over"
        reasons.append(f"p50 {latency.p50_ms:.2f} ms, budget {limits.budget_ms:g} ms: {where}")
        if not inside:
            fixes.append("raise --budget-ms, give more --threads, or take a smaller model or input")
    if not limits.judge_time:
        return _Time("not judged", (*reasons, "time was not judged (--gate accuracy)"))
    return _Time(worst(answers), tuple(reasons), tuple(fixes))


def _time_fixes(answer: Answer, limits: Limits) -> tuple[str, ...]:
    if answer == "yes":
        return ()
    if answer == "no":
        return _other_strategies(limits, "--strategy mixed searches float and INT8 together")
    return (
        "build again while the machine is idle, or with more --threads",
        "--gate accuracy accepts without judging the time",
    )


def _other_strategies(limits: Limits, mixed: str) -> tuple[str, ...]:
    fallback = "--strategy float builds the float bundle on its fastest engine"
    return (mixed, fallback) if "mixed" in limits.strategies else (fallback,)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


__all__ = [
    "CANNOT_TELL",
    "DEFAULT_LOST_PERCENT",
    "DEFAULT_MAP_DROP_PERCENT",
    "GIVE_PICTURES",
    "MAX_CONFIDENCE_SHIFT",
    "MAX_SLOWDOWN",
    "Evidence",
    "Limits",
    "Measured",
    "accuracy_of",
    "judge",
]
