"""The gate: may this bundle serve? Pure decisions over measured numbers.

Nothing here may import onnx: ``avq compile`` judges engines on machines without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from avq.types import Accuracy, Fidelity, Finding, Latency, Verdict

if TYPE_CHECKING:
    from avq.builder.lift import Parity

DEFAULT_MAP_DROP_PERCENT = 2.0
DEFAULT_LOST_PERCENT = 1.0
MAX_CONFIDENCE_SHIFT = 0.02
MAX_SLOWDOWN = 1.02
MIN_SQNR_DB = 20.0
CANNOT_TELL = "cannot tell: options changed the imported plan, and without pictures nothing was compared"
GIVE_PICTURES = "--data DIR gives pictures: the changed plan is compared with the float model on them"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of accuracy and time.

    Attributes:
        max_drop_percent: None takes the default of the metric in use.
        budget_ms: limit of the engine's p50, or None.
        strategies: registered ones; only these are suggested as fixes.
    """

    max_drop_percent: float | None = None
    budget_ms: float | None = None
    strategies: tuple[str, ...] = ("static", "mixed")


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one bundle; absent ones are None.

    Attributes:
        float_accuracy, accuracy: against labels, on the held-out pictures.
        fidelity: against the float model's boxes.
        sqnr_db: worst graph output, for bundles without a decoder.
        latency: paired with the fastest float engine; None when the target cannot run here.
        is_float: the bundle holds the float model, which is its own reference.
    """

    float_accuracy: Accuracy | None
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    sqnr_db: float | None
    latency: Latency | None
    is_float: bool = False


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


def judge(evidence: Evidence, limits: Limits) -> Verdict:
    """Check accuracy, time, parity and findings; every result is a reason, whether it passed or failed."""
    accurate, metric, accuracy_fixes = _accuracy(evidence, limits)
    fast, time_reasons, time_fixes = _time(evidence.measured, limits)
    parity, findings = evidence.parity, evidence.findings
    equal = parity is None or parity.equal
    passed = accurate and fast and equal and all(finding.severity != "error" for finding in findings)
    return Verdict(
        accepted=("pending" if evidence.pending_target else "yes") if passed else "no",
        metric=metric,
        reasons=(
            metric,
            *time_reasons,
            *([parity.summary] if parity is not None else []),
            *evidence.conclusions,
            *map(_sentence, findings),
        ),
        fixes=(
            *dict.fromkeys([*accuracy_fixes, *time_fixes]),
            *(finding.fix for finding in findings if finding.fix),
        ),
    )


def _sentence(finding: Finding) -> str:
    seen = f" ({finding.seen})" if finding.seen else ""
    return f"{finding.severity} {finding.code}: {finding.what}{seen}"


def _accuracy(evidence: Evidence, limits: Limits) -> tuple[bool, str, tuple[str, ...]]:
    measured = evidence.measured
    if measured.accuracy is not None and measured.float_accuracy is not None:
        ok, metric = _by_labels(measured.float_accuracy, measured.accuracy, limits)
    elif measured.fidelity is not None:
        ok, metric = _by_boxes(measured.fidelity, limits)
    elif evidence.import_changed and not evidence.has_pictures:
        return False, CANNOT_TELL, (GIVE_PICTURES,)
    elif evidence.parity is not None and not evidence.import_changed:
        ok, metric = _by_parity(evidence.parity, measured.sqnr_db)
    else:
        ok, metric = _by_noise(measured.sqnr_db)
    fixes = () if ok else _other_strategies(limits, "--strategy mixed keeps the sensitive operators float")
    return ok, metric, fixes


def _by_labels(reference: Accuracy, chosen: Accuracy, limits: Limits) -> tuple[bool, str]:
    limit = _default(limits.max_drop_percent, DEFAULT_MAP_DROP_PERCENT)
    if reference.map <= 0:
        return False, f"the float model detects no labelled object (mAP {reference.map:.4f})"
    drop = round(100.0 * (reference.map - chosen.map) / reference.map, 4)
    metric = (
        f"mAP {chosen.map:.4f} against float {reference.map:.4f} on {chosen.images} pictures: "
        f"loss {drop + 0.0:.2f} % (limit {limit:g} %)"
    )
    return drop <= limit, metric


def _by_boxes(fidelity: Fidelity, limits: Limits) -> tuple[bool, str]:
    limit = _default(limits.max_drop_percent, DEFAULT_LOST_PERCENT)
    if fidelity.boxes == 0:
        return False, (
            f"nothing to compare: the float model has no box with score >= 0.5 in {fidelity.images} pictures"
        )
    lost = 100.0 * fidelity.lost
    metric = (
        f"lost boxes {lost:.2f} % of {fidelity.boxes} (limit {limit:g} %), "
        f"confidence shift {fidelity.confidence_shift:+.4f} (limit {MAX_CONFIDENCE_SHIFT:g})"
    )
    return lost <= limit and abs(fidelity.confidence_shift) <= MAX_CONFIDENCE_SHIFT, metric


def _by_noise(sqnr_db: float | None) -> tuple[bool, str]:
    if sqnr_db is None:
        return False, "nothing to compare: give pictures with --data"
    return sqnr_db >= MIN_SQNR_DB, f"worst output SQNR {sqnr_db:.1f} dB (limit {MIN_SQNR_DB:g} dB)"


def _by_parity(parity: Parity, sqnr_db: float | None) -> tuple[bool, str]:
    """A trained quantization defines its own answers: without boxes, equality with its source decides."""
    basis = "judged on parity with the source file alone: boxes are not compared"
    noise = f"; worst output SQNR {sqnr_db:.1f} dB against its float graph" if sqnr_db is not None else ""
    return parity.equal, basis + noise


def _time(measured: Measured, limits: Limits) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    latency = measured.latency
    if latency is None:
        return True, ("time was not measured here: avq compile measures it on the target",), ()
    ok, reasons = True, []
    fixes: list[str] = []
    if not measured.is_float:
        slower = latency.ratio_low > MAX_SLOWDOWN
        reasons.append(
            f"{latency.ratio:.2f}x the time of {latency.float_engine} "
            f"(95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}, paired): "
            + ("slower than float" if slower else "not slower than float")
        )
        if slower:
            ok = False
            fixes += _other_strategies(limits, "--strategy mixed searches float and INT8 together")
    if limits.budget_ms is not None:
        inside = latency.p50_ms <= limits.budget_ms
        reasons.append(
            f"p50 {latency.p50_ms:.2f} ms, budget {limits.budget_ms:g} ms: "
            + ("inside" if inside else "over")
        )
        if not inside:
            ok = False
            fixes.append("raise --budget-ms, give more --threads, or take a smaller model or input")
    return ok, tuple(reasons), tuple(fixes)


def _other_strategies(limits: Limits, mixed: str) -> tuple[str, ...]:
    fallback = "--strategy float builds the float bundle on its fastest engine"
    return (mixed, fallback) if "mixed" in limits.strategies else (fallback,)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
