"""Where every captured frame went: captured == published + sum(dropped by cause) + in flight, always."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SUPERSEDED = "superseded"
STOPPED = "stopped"
STRIDE = "stride"


@dataclass
class Ledger:
    """Counts of one camera. ``in_flight`` is not kept here: whoever holds the frames counts them."""

    captured: int = 0
    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    _lost_before: dict[str, int] = field(default_factory=dict)

    def announced(self, lost: dict[str, int]) -> None:
        """One frame was handed over; ``lost`` are the cumulative drops of its capture process."""
        self.lost_so_far(lost)
        self.captured += 1

    def lost_so_far(self, lost: dict[str, int]) -> None:
        """Take over what the capture process dropped since the last message."""
        for cause, total in lost.items():
            new = total - self._lost_before.get(cause, 0)
            self.captured += new
            self.dropped[cause] += new
        self._lost_before = dict(lost)

    def replaced(self) -> None:
        """A fresh capture process counts its drops from zero."""
        self._lost_before = {}


@dataclass(frozen=True, slots=True)
class Account:
    """The books at one instant, over all cameras."""

    captured: int
    published: int
    dropped: dict[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        """Nothing vanished and nothing was counted twice."""
        return self.captured == self.published + sum(self.dropped.values()) + self.in_flight
