"""Tables, chart and sentences on the walk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from avq.types import Figure, FigurePoint, MeasuredPlan, Series
from avq_lowbit.plans import Bits, Group, Plans
from avq_lowbit.search import Limits, Step, loss


def step_rows(steps: Sequence[Step], chosen: Step, limits: Limits) -> list[dict[str, object]]:
    """Return one row per measured point of the walk, widest weights first."""
    return [
        {
            "reductions": step.index,
            "weights MB": round(step.size / 1e6, 4),
            "layers by bits": _counted(step.bits),
            "lost boxes %": round(loss(step.score), 2) if step.score.fidelity else "-",
            "confidence shift": round(step.score.fidelity.confidence_shift, 4)
            if step.score.fidelity
            else "-",
            "worst SQNR dB": round(min(step.score.sqnr_db.values(), default=float("nan")), 1),
            "inside the limit": limits.accurate(step.score),
            "chosen": step is chosen,
        }
        for step in steps
    ]


def group_rows(plans: Plans, step: Step) -> list[dict[str, object]]:
    """Return one row per weight tensor, in graph order."""
    return [
        {
            "group": group.name,
            "kind": group.kind,
            "weights": group.count,
            "bits": bits,
            "in the file": storage(bits, native=plans.native),
            "float bytes": group.bytes_at(32),
            "8-bit bytes": group.bytes_at(8),
            "bytes": group.bytes_at(bits),
        }
        for group, bits in zip(plans.groups, step.bits, strict=True)
    ]


def group_reasons(plans: Plans, step: Step) -> dict[str, str]:
    """Return group -> width of its weights, and why the target refuses fewer bits where it does."""
    return {g.name: _reason(plans, g, b) for g, b in zip(plans.groups, step.bits, strict=True)}


def _reason(plans: Plans, group: Group, bits: int) -> str:
    stored = storage(bits, native=plans.native)
    reason = f"{group.kind}: weights in {bits} bits ({stored}), {group.bytes_at(bits)} bytes"
    if not plans.allowed(group, plans.widths[-1]):
        why = (
            "for matrix products only"
            if group.kind != "matmul"
            else "in pairs only, and their number here is odd"
        )
        reason += f"; fewer bits refused: the target has INT4 weights {why}"
    return reason


def storage(bits: int, *, native: bool) -> str:
    """Return the storage form of weights of that width."""
    if bits == 8:
        return "native INT8"
    return "native INT4" if native else "packed, unpacked at load"


def curve(steps: Sequence[Step], chosen: Step, limits: Limits) -> Figure:
    """Return the chart of accuracy against bytes."""
    decoded = chosen.score.fidelity is not None
    points = tuple(
        FigurePoint(s.size / 1e6, loss(s.score), _counted(s.bits), chosen=s is chosen) for s in steps
    )
    return Figure(
        title="Accuracy against bits",
        x_label="weights, MB",
        y_label="lost boxes, %" if decoded else "noise of the worst output, % of its signal",
        series=(Series("walk from 8 bits to 1", points, line=True),),
        lead="Each point is a corrected plan that was measured; further left is smaller.",
        y_limit=limits.line(chosen.score),
    )


def conclusion(plans: Plans, step: Step, served: MeasuredPlan | None, target_mb: float | None) -> str:
    """Return one sentence for the verdict."""
    eight, whole = plans.bytes_at((8,) * len(step.bits)), plans.bytes_at((32,) * len(step.bits))
    data = "INT8" if plans.data.int8 else "float"
    sentence = (
        f"lowbit stores the weights in {step.size / 1e6:.3f} MB, {100 * step.size / eight:.0f} % of their INT8 "
        f"size and {100 * step.size / whole:.0f} % of float, on average {mean_bits(plans, step.bits):.2f} bits "
        f"({_counted(step.bits)}), data in {data}"
    )
    if target_mb is not None and step.size > target_mb * 1e6:
        sentence += f"; {target_mb:g} MB cannot be reached"
    return sentence if served is not None else sentence + "; no engine here reproduces its reference outputs"


def mean_bits(plans: Plans, bits: Bits) -> float:
    """Return the mean bits per quantized weight, without scales."""
    weights = [g.count for g in plans.groups]
    return sum(n * b for n, b in zip(weights, bits, strict=True)) / max(sum(weights), 1)


def _counted(bits: Bits) -> str:
    counted = Counter(bits)
    return ", ".join(f"{counted[b]}x{b}" for b in sorted(counted, reverse=True))
