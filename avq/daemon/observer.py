"""Whoever looks over the loop's shoulder while a run goes on: a page, metrics. Never in its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from avq.daemon.inbox import Account
from avq.daemon.pipeline import Turn
from avq.daemon.publisher import SinkReport
from avq.types import Frame, LatencyBudget


@dataclass(frozen=True)
class RunView:
    """What may be asked from any thread while a run goes on; no answer holds up the loop.

    Attributes:
        budget: what counts as late.
        accounts: the books per camera, all of one instant.
        sinks: what each sink has written and missed so far.
        pids: capture process per camera that is still captured.
        swap: puts another bundle folder into service and says what came of it; None where it cannot.
        drift: what the drift probe found so far; None where nobody looks.
        shadow: how far a candidate agrees with what serves; None where there is none.
    """

    budget: LatencyBudget
    accounts: Callable[[], Mapping[str, Account]]
    sinks: Callable[[], Sequence[SinkReport]]
    pids: Callable[[], Mapping[str, int]]
    swap: Callable[[Path], Mapping[str, Any]] | None = None
    drift: Callable[[], Mapping[str, Any] | None] = lambda: None
    shadow: Callable[[], Mapping[str, Any] | None] = lambda: None


class Watcher(Protocol):
    """Called on the loop's thread: every method must return within microseconds and never raise."""

    def opened(self, run: RunView) -> None:
        """The engine is warm and the cameras are being opened."""

    def beat(self) -> None:
        """The loop goes round, with or without a frame."""

    def saw(self, frame: Frame, turn: Turn) -> None:
        """One frame was published; its pixels are valid during the call only."""

    def ended(self) -> None:
        """The loop is over."""


class Unwatched:
    """Nobody looks."""

    def opened(self, run: RunView) -> None:
        pass

    def beat(self) -> None:
        pass

    def saw(self, frame: Frame, turn: Turn) -> None:
        pass

    def ended(self) -> None:
        pass
