"""Network cameras that misbehave, 200 seeded lives: python -m tests.soak.faults [SCENARIOS [FIRST_SEED]]

Prints one line per run of five cameras, then the worst of all; exit code 1 where a bar was missed.
"""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from tests.faults.scenarios import Scenario, play, replaced_s, report_periods, resources, scenario

_TOGETHER = 5


def main(scenarios: int = 200, first: int = 0) -> int:
    before = resources()
    periods: list[float] = []
    replaced: list[float] = []
    causes: Counter[str] = Counter()
    wrong: list[str] = []
    for start in range(first, first + scenarios, _TOGETHER):
        batch = [scenario(seed) for seed in range(start, min(start + _TOGETHER, first + scenarios))]
        wrong += _judge(batch, periods, replaced, causes)
        print(
            f"{start + len(batch) - first} scenarios: {len(replaced)} replaced, {len(wrong)} wrong",
            flush=True,
        )
    after = resources()
    if after != before:
        wrong.append(f"resources {before} became {after}")
    p99_s = float(np.percentile(replaced, 99))
    if p99_s > 1.0:
        wrong.append(f"replaced within {p99_s:.2f} s p99")
    print(f"stalls told: {len(periods)}, worst after {max(periods):.2f} frame periods; causes {dict(causes)}")
    print(f"replaced: {len(replaced)}, p50 {np.median(replaced):.3f} s, p99 {p99_s:.3f} s")
    print(f"resources {before} -> {after}")
    print("\n".join(wrong) or "every bar held")
    return 1 if wrong else 0


def _judge(
    batch: list[Scenario], periods: list[float], replaced: list[float], causes: Counter[str]
) -> list[str]:
    played = play(batch)
    wrong: list[str] = []
    if not played.balanced:
        wrong.append(f"{batch[0].seed}: the books do not balance")
    for one in batch:
        name = f"{one.kind}-{one.seed}"
        life = played.lives[name]
        causes.update(event["cause"] for event in life.events if event["kind"] == "camera_stalled")
        if life.seqs != sorted(set(life.seqs)):
            wrong.append(f"{name}: frame numbers go back")
        told = [report_periods(life, at, played.metronome) for at in life.times("camera_stalled")]
        if one.kind == "jitter":
            if played.restarts[name]:
                wrong.append(f"{name}: restarted {life.events}")
            continue
        periods += told
        replaced += (spans := replaced_s(life))
        if any(span > 1.0 for span in spans):
            slow = [(event["kind"], event["cause"], event["t_ns"] // 10**6) for event in life.events]
            print(f"  {name} was replaced after {max(spans):.2f} s: {slow}")
        if not told or max(told) > 3.0:
            wrong.append(f"{name}: told after {told} periods")
        if not life.times("camera_resumed"):
            wrong.append(f"{name}: did not come back: {life.events}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
