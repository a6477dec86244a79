"""Observers of a running daemon, such as the page: called by the loop, never waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from avq.daemon.inbox import FrameCounts
from avq.daemon.pipeline import FrameResult
from avq.daemon.publisher import SinkReport
from avq.types import Frame, LatencyBudget


@dataclass(frozen=True)
class RunView:
    """State of a run, readable from any thread; no call delays the loop.

    Attributes:
        budget: deadline and tolerated misses.
        counts_by_camera: frame counts per camera, all of one instant.
        sinks: counts of each sink so far.
        pids: capture process per camera that is captured now.
        conditions: camera -> "delivering", "silent", "opening", "restarting" or "dead"; ended ones are missing.
        swap: serves another bundle folder and returns the result; None where the run cannot swap.
        drift: state of the drift watch; None where none is configured.
        shadow: agreement of the candidate with the serving bundle; None where none is configured.
    """

    budget: LatencyBudget
    counts_by_camera: Callable[[], Mapping[str, FrameCounts]]
    sinks: Callable[[], Sequence[SinkReport]]
    pids: Callable[[], Mapping[str, int]]
    conditions: Callable[[], Mapping[str, str]] = dict
    swap: Callable[[Path], Mapping[str, Any]] | None = None
    drift: Callable[[], Mapping[str, Any] | None] = lambda: None
    shadow: Callable[[], Mapping[str, Any] | None] = lambda: None


class RunObserver(Protocol):
    """Called on the loop's thread: every method must return within microseconds and must not raise."""

    def on_open(self, run: RunView) -> None:
        """The engine is warm and the cameras are being opened."""

    def on_tick(self) -> None:
        """The loop starts another round, with or without a frame."""

    def on_frame(self, frame: Frame, result: FrameResult) -> None:
        """One frame was published; its pixels are valid during the call only."""

    def on_end(self) -> None:
        """The loop has ended."""


class NullObserver:
    """Ignores every call."""

    def on_open(self, run: RunView) -> None:
        pass

    def on_tick(self) -> None:
        pass

    def on_frame(self, frame: Frame, result: FrameResult) -> None:
        pass

    def on_end(self) -> None:
        pass
