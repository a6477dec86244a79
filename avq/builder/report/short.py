"""The few numbers to remember."""

from __future__ import annotations

from avq.builder.outcome import Outcome
from avq.measure.fidelity import FIRM_SCORE
from avq.render import Fact, Html, key_figures, section


def short(outcome: Outcome) -> Html:
    """Engine, share in INT8, time and loss."""
    summary = outcome.summary()
    chosen, latency = summary["chosen"], outcome.chosen.latency
    facts = [
        Fact("engine", outcome.chosen.candidate.engine, note=f"runs in {outcome.chosen.runs_in or 'float'}"),
        Fact("multiply-adds in INT8", f"{100 * outcome.int8_mac_share:.1f} %"),
    ]
    if latency is not None:
        interval = f"95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}"
        facts.append(Fact("p50", f"{latency.p50_ms:.2f} ms", note=f"p99 {latency.p99_ms:.2f} ms"))
        facts.append(Fact(f"time / {latency.float_engine}", f"{latency.ratio:.2f}", note=interval))
    if chosen["lost"] is not None:
        facts.append(
            Fact(
                "boxes lost", f"{100 * chosen['lost']:.2f} %", note=f"of float's with score >= {FIRM_SCORE:g}"
            )
        )
        facts.append(
            Fact("confidence shift", f"{chosen['confidence_shift']:+.4f}", note="mean, matched boxes")
        )
    if chosen["map"] is not None:
        facts.append(
            Fact("mAP50-95", f"{chosen['map']:.4f}", note=f"float {summary['float']['map']:.4f}, held out")
        )
    return section("In short", key_figures(facts))
