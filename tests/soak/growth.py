"""Weeks in minutes: small frames, lost cameras and swapped bundles around a null engine; nothing may grow.

python -m tests.soak.growth [FRAMES [RECONNECTS [SWAPS]]]          (200000 200 50)
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from avq.daemon import ActiveModes, FrameResult, Mode, RestartPolicy, RunOptions, RunSummary, serve_bundle
from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.observer import NullObserver, RunView
from avq.errors import MachineError
from avq.process import resident_bytes
from avq.sinks import CallbackSink
from avq.types import Frame, LatencyBudget
from tests.daemon.daemon_kit import null_parts
from tests.faults.scenarios import resources

_SETTLED = 0.2  # of the frames: before, caches fill


@dataclass
class Life(NullObserver):
    """Kills the camera and swaps the bundle at set frames, and measures in between."""

    frames: int
    kill_every: int
    swap_every: int
    swapper: BundleSwapper
    seen: int = 0
    kills: int = 0
    asked: int = 0
    resident: list[tuple[int, int]] = field(default_factory=list)
    counts: list[Counter[str]] = field(default_factory=list)
    swaps: list[threading.Thread] = field(default_factory=list)
    run: RunView | None = None

    def on_open(self, run: RunView) -> None:
        self.run = run

    def on_frame(self, frame: Frame, turn: FrameResult) -> None:
        self.seen += 1
        if self.seen % self.kill_every == 0 and self.run is not None:
            self._kill()
        if self.seen % self.swap_every == 0:
            self.asked += 1
            self.swaps.append(threading.Thread(target=self._swap, args=(Path(f"bundle {self.asked}"),)))
            self.swaps[-1].start()
        if self.seen % max(self.frames // 200, 1) == 0:
            self.resident.append((self.seen, resident_bytes(os.getpid()) or 0))
        if self.seen % self.kill_every == self.kill_every // 2:
            asking = sum(thread.is_alive() for thread in self.swaps)
            self.counts.append(Counter({**resources(), "threads": threading.active_count() - asking}))

    def _swap(self, path: Path) -> None:
        with suppress(MachineError):  # asked on the last frames, the run is over
            self.swapper.swap(path)

    def _kill(self) -> None:
        assert self.run is not None
        for pid in self.run.pids().values():
            os.kill(pid, signal.SIGKILL)
            self.kills += 1


@dataclass
class Grown:
    """What was left at the end, and what grew on the way."""

    summary: RunSummary
    life: Life
    mb_per_million: float
    mb_grown: float
    before: dict[str, int]
    after: dict[str, int]


def live(frames: int = 200_000, reconnects: int = 200, swaps: int = 50) -> Grown:
    """One run; frames come as fast as the capture process gives them."""
    gc.collect()
    before = {**resources(), "threads": threading.active_count()}
    parts = null_parts()

    def prepare(path: Path | None) -> ActiveModes:
        other = replace(null_parts(), bundle_digest=str(path))
        return ActiveModes((Mode(other),), other.session.close)

    swapper = BundleSwapper(ActiveModes((Mode(parts),)), prepare)
    life = Life(frames, frames // reconnects, frames // swaps, swapper)
    policy = RestartPolicy(max_restarts=10**6)
    summary = serve_bundle(
        parts,
        sources={"front": "numbered://0"},
        sinks=[CallbackSink(lambda *_: None, wants_pixels=False)],
        budget=LatencyBudget(10**9),
        options=RunOptions(
            frames=frames,
            policy="every",
            providers=("tests.daemon.numbered_source:types",),
            restarts=policy,
            observer=life,
            swapper=swapper,
        ),
    )
    swapper.close()
    for swap in life.swaps:
        swap.join(60)
    gc.collect()
    settled = np.array([row for row in life.resident if row[0] >= _SETTLED * frames], float)
    slope = np.polyfit(settled[:, 0], settled[:, 1], 1)[0]
    grown = np.median(settled[-5:, 1]) - np.median(settled[:5, 1])
    after = {**resources(), "threads": threading.active_count()}
    return Grown(summary, life, slope * 1e6 / 2**20, grown / 2**20, before, after)


def main(frames: int = 200_000, reconnects: int = 200, swaps: int = 50) -> int:
    grown = live(frames, reconnects, swaps)
    events = Counter(event["kind"] for event in grown.summary.events)
    books = grown.summary.counts
    settled = grown.life.counts[len(grown.life.counts) // 5 :]
    most, least = ({key: pick(count[key] for count in settled) for key in settled[0]} for pick in (max, min))
    print(
        f"frames {books.published}, books {'balance' if books.balanced else 'DO NOT BALANCE'}, {books.dropped}"
    )
    print(f"cameras killed {grown.life.kills}, swaps asked {grown.life.asked}; last events {dict(events)}")
    print(f"resident memory: {grown.mb_per_million:+.2f} MB per 10^6 frames ({grown.mb_grown:+.2f} MB seen)")
    print(f"on the way, least {least}, most {most}")
    print(f"before {grown.before}, after {grown.after}")
    held = books.balanced and grown.mb_per_million < 4 and grown.after == grown.before
    print("every bar held" if held else "MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
