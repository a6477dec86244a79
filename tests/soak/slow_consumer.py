"""A consumer ten times too slow for its camera: python -m tests.soak.slow_consumer [MINUTES [FPS]]

A live source with its frame numbers in the pixels, an engine that takes ten frame periods. Prints the books and the
ages; exit code 1 where a bar was missed. What other programs took from the machine is measured beside and told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avq.daemon import FrameResult, RunOptions, RunSummary, serve_bundle
from avq.sinks import CallbackSink
from avq.types import U8, Frame, LatencyBudget, Published, RawOutputs
from tests.daemon.daemon_kit import null_parts
from tests.daemon.numbered_source import number_in
from tests.faults.scenarios import Metronome

SLOWER = 10


class SlowSession:
    """Takes its time without taking a processor."""

    engine, precision = "slow", "f32"

    def __init__(self, seconds: float) -> None:
        self._seconds, self._inner = seconds, null_parts().session

    def infer(self, tensor: U8) -> RawOutputs:
        time.sleep(self._seconds)
        return self._inner.infer(tensor)

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.infer(feeds[""])

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Played:
    """One run: its summary, (number in the message, number in the pixels), and per frame (age, service, and how late
    this machine woke sleepers in between), ms."""

    summary: RunSummary
    numbers: list[tuple[int, int]]
    times_ms: list[tuple[float, float, float]]


def play(frames: int, fps: float) -> Played:
    """So many frames of the source, of which a tenth can be served."""
    numbers: list[tuple[int, int]] = []
    turns: list[FrameResult] = []

    def keep(message: Published, frame: Frame | None) -> None:
        assert frame is not None
        numbers.append((message.detections.seq, number_in(frame.pixels)))

    metronome = Metronome()
    summary = serve_bundle(
        replace(null_parts(), session=SlowSession(SLOWER / fps)),
        sources={"front": f"numbered://{fps:g}/{frames}"},
        sinks=[CallbackSink(keep)],
        budget=LatencyBudget(10**9),
        options=RunOptions(providers=("tests.daemon.numbered_source:types",), on_result=turns.append),
    )
    metronome.close()
    return Played(summary, numbers, [_times(turn, metronome) for turn in turns])


def _times(turn: FrameResult, metronome: Metronome) -> tuple[float, float, float]:
    age_ns, begin_s = turn.published.age_ns, turn.published.detections.t_capture_ns / 1e9
    late_s = metronome.late_s(begin_s, begin_s + age_ns / 1e9)
    return age_ns / 1e6, (age_ns - turn.times.queue_ns) / 1e6, late_s * 1e3


def main(minutes: float = 10.0, fps: float = 30.0) -> int:
    played = play(round(minutes * 60 * fps), fps)
    books = played.summary.counts
    ages, services, late = (np.array(column) for column in zip(*played.times_ms, strict=True))
    over = ages - services - 1000 / fps  # what a frame waited beyond one period
    ours = over - late
    wrong = sum(seq != drawn for seq, drawn in played.numbers)
    print(f"captured {books.captured} = published {books.published} + dropped {books.dropped} + "
          f"in flight {books.in_flight}")  # fmt: skip
    print(f"numbers that disagree: {wrong} of {len(played.numbers)}")
    print(f"age p50 {np.median(ages):.1f} p99 {np.percentile(ages, 99):.1f} max {ages.max():.1f} ms; "
          f"service p50 {np.median(services):.1f} ms, frame period {1000 / fps:.1f} ms")  # fmt: skip
    print(f"age - (1 period + 1 service): p99 {np.percentile(over, 99):.2f} max {over.max():.2f} ms; "
          f"above it {np.mean(over > 0):.2%} of frames")  # fmt: skip
    print(f"... less what the machine was late: p99 {np.percentile(ours, 99):.2f} max {ours.max():.2f} ms")
    held = books.balanced and not books.in_flight and sum(books.dropped.values()) > 0 and not wrong
    held = held and np.percentile(ours, 99) <= 0
    print("every bar held" if held else "MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
