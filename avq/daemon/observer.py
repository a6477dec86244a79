"""Whoever looks over the loop's shoulder while a run goes on: a page, metrics. Never in its way."""

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
    """What may be asked from any thread while a run goes on; no answer holds up the loop.

    Attributes:
        budget: what counts as late.
        counts_by_camera: the books per camera, all of one instant.
        sinks: what each sink has written and missed so far.
        pids: capture process per camera that is still captured.
        swap: puts another bundle folder into service and says what came of it; None where it cannot.
        drift: what the drift probe found so far; None where nobody looks.
        shadow: how far a candidate agrees with what serves; None where there is none.
    """

    budget: LatencyBudget
    counts_by_camera: Callable[[], Mapping[str, FrameCounts]]
    sinks: Callable[[], Sequence[SinkReport]]
    pids: Callable[[], Mapping[str, int]]
    swap: Callable[[Path], Mapping[str, Any]] | None = None
    drift: Callable[[], Mapping[str, Any] | None] = lambda: None
    shadow: Callable[[], Mapping[str, Any] | None] = lambda: None


class RunObserver(Protocol):
    """Called on the loop's thread: every method must return within microseconds and never raise."""

    def on_open(self, run: RunView) -> None:
        """The engine is warm and the cameras are being opened."""

    def on_tick(self) -> None:
        """The loop goes round, with or without a frame."""

    def on_frame(self, frame: Frame, result: FrameResult) -> None:
        """One frame was published; its pixels are valid during the call only."""

    def on_end(self) -> None:
        """The loop is over."""


class NullObserver:
    """Nobody looks."""

    def on_open(self, run: RunView) -> None:
        pass

    def on_tick(self) -> None:
        pass

    def on_frame(self, frame: Frame, result: FrameResult) -> None:
        pass

    def on_end(self) -> None:
        pass
