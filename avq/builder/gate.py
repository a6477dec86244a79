"""The gate: may this bundle serve? Pure decisions over measured numbers."""

from __future__ import annotations

from dataclasses import dataclass

from avq.types import Accuracy, Fidelity, Latency, Verdict

DEFAULT_MAP_DROP_PERCENT = 2.0
DEFAULT_LOST_PERCENT = 1.0
MAX_CONFIDENCE_SHIFT = 0.02
MAX_SLOWDOWN = 1.02
MIN_SQNR_DB = 20.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What was asked for.

    Attributes:
        max_drop_percent: None takes the default of the metric in use.
        budget_ms: wanted p50 of the engine, or None.
        strategies: registered ones, so that a way on is only named where it exists.
    """

    max_drop_percent: float | None = None
    budget_ms: float | None = None
    strategies: tuple[str, ...] = ("static", "mixed")


@dataclass(frozen=True, slots=True)
class Measured:
    """What the gate judges; absent measurements are None.

    Attributes:
        float_accuracy, accuracy: against labels, on the held-out pictures.
        fidelity: against the float model's boxes.
        sqnr_db: worst graph output, for bundles without a decoder.
        latency: paired with the fastest float engine; None when the target cannot run here.
        is_float: the bundle holds the float model, which cannot lose to itself.
        proven: an import computes what its source does; None where nothing was imported or proven.
    """

    float_accuracy: Accuracy | None
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    sqnr_db: float | None
    latency: Latency | None
    is_float: bool = False
    proven: bool | None = None


def judge(measured: Measured, limits: Limits) -> Verdict:
    """Accuracy first, then time; every reason is kept, whether it speaks for or against."""
    accurate, metric, fixes = _accuracy(measured, limits)
    fast, time_reasons, time_fixes = _time(measured, limits)
    reasons = (metric, *time_reasons)
    return Verdict(accurate and fast, metric, reasons, tuple(dict.fromkeys([*fixes, *time_fixes])))


def _accuracy(measured: Measured, limits: Limits) -> tuple[bool, str, tuple[str, ...]]:
    if measured.accuracy is not None and measured.float_accuracy is not None:
        ok, metric = _by_labels(measured.float_accuracy, measured.accuracy, limits)
    elif measured.fidelity is not None:
        ok, metric = _by_boxes(measured.fidelity, limits)
    elif measured.proven is not None:
        ok, metric = _by_parity(proven=measured.proven, sqnr_db=measured.sqnr_db)
    else:
        ok, metric = _by_noise(measured.sqnr_db)
    return ok, metric, () if ok else _ways_on(limits, "--strategy mixed leaves what INT8 ruins in float")


def _by_labels(reference: Accuracy, chosen: Accuracy, limits: Limits) -> tuple[bool, str]:
    limit = _default(limits.max_drop_percent, DEFAULT_MAP_DROP_PERCENT)
    if reference.map <= 0:
        return False, f"the float model finds nothing that is labelled (mAP {reference.map:.4f})"
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
        return False, "nothing was compared: give pictures with --data"
    return sqnr_db >= MIN_SQNR_DB, f"worst output SQNR {sqnr_db:.1f} dB (limit {MIN_SQNR_DB:g} dB)"


def _by_parity(*, proven: bool, sqnr_db: float | None) -> tuple[bool, str]:
    """A trained quantization is its own truth: no box was compared, so being the source is what counts."""
    judged = "judged on parity with the source file alone: boxes are not compared"
    noise = f"; worst output SQNR {sqnr_db:.1f} dB against its float graph" if sqnr_db is not None else ""
    return proven, judged + noise


def _time(measured: Measured, limits: Limits) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    latency = measured.latency
    if latency is None:
        return True, ("time was not measured here: avq compile times it on its target",), ()
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
            fixes += _ways_on(limits, "--strategy mixed searches float and INT8 together")
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


def _ways_on(limits: Limits, mixed: str) -> tuple[str, ...]:
    fallback = "--strategy float builds the float bundle on its fastest engine"
    return (mixed, fallback) if "mixed" in limits.strategies else (fallback,)


def _default(value: float | None, default: float) -> float:
    return default if value is None else value
