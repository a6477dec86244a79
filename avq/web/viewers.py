"""What became of those who look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ViewerCounts:
    """Of the event stream; written by the web thread only.

    Attributes:
        now: open streams.
        dropped: viewers whose connection did not take what it was sent.
        told: frames, summed over viewers.
        missed: frames that left the board before anybody could be told.
    """

    now: int = 0
    dropped: int = 0
    told: int = 0
    missed: int = 0
