"""Why depthwise convolutions lose accuracy in INT8: channels of very different range under one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq import Workbench
from avq.toolbox import Placement
from avq.types import MomentRequest

_SHOWN, _NAMED = 8, 3


@dataclass(frozen=True)
class ChannelRanges:
    """How the channels that one depthwise convolution reads differ.

    Attributes:
        node, channels: which, and how many channels it has.
        ratio: largest range over the median one; all of them share one scale.
    """

    node: str
    channels: int
    ratio: float

    def row(self) -> dict[str, object]:
        return {
            "depthwise convolution": self.node,
            "channels": self.channels,
            "largest / median range": round(self.ratio, 1),
            "levels left to the median channel": round(256 / self.ratio, 1),
        }


def channel_ranges(bench: Workbench, placements: Sequence[Placement]) -> list[ChannelRanges]:
    """Of every depthwise convolution, the most uneven first."""
    chosen = [p for p in placements if p.kind == "depthwise"]
    requests = [MomentRequest(p.activations[0].tensor, "peak") for p in chosen]
    peaks = bench.moments(requests)
    found = []
    for placement, request in zip(chosen, requests, strict=True):
        peak = peaks[request.key]
        alive = peak[peak > 0]
        ratio = float(alive.max() / np.median(alive)) if alive.size else 1.0
        found.append(ChannelRanges(placement.node, int(peak.size), ratio))
    return sorted(found, key=lambda c: (-c.ratio, c.node))


def tell(bench: Workbench, placements: Sequence[Placement], consequence: str) -> None:
    """A note on the most uneven layers, and a sentence that names them as the cause.

    Args:
        consequence: what was measured, and what was done about it.
    """
    found = channel_ranges(bench, placements)
    if not found:
        return
    bench.note("static: channel ranges of depthwise convolutions", [c.row() for c in found[:_SHOWN]])
    named = ", ".join(f"{c.node} ({c.ratio:.0f}x)" for c in found[:_NAMED])
    bench.conclude(
        f"depthwise convolutions are the cause of the loss: {consequence}; under one scale the largest channel's "
        f"range is up to {found[0].ratio:.0f} times the median one's, worst in {named}"
    )
