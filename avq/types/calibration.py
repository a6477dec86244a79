"""What a strategy asks of the calibration pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Calibrator = Literal["entropy", "mse", "percentile", "minmax"]
CALIBRATORS: tuple[Calibrator, ...] = ("entropy", "mse", "percentile", "minmax")


@dataclass(frozen=True, slots=True)
class StatRequest:
    """Ask for the histogram of one activation tensor of the float graph."""

    tensor: str


@dataclass(frozen=True, slots=True)
class MomentRequest:
    """Ask for float sums over one activation tensor.

    Attributes:
        tensor: activation tensor of the float graph, (1, C, ...) .
        kind: "mean" gives the per-channel mean, (C,) float64.
    """

    tensor: str
    kind: Literal["mean"] = "mean"


@dataclass(frozen=True, slots=True)
class Range:
    """A clipping range in real numbers: values outside saturate. ``low`` <= 0 <= ``high``."""

    low: float
    high: float

    @property
    def threshold(self) -> float:
        """The symmetric range that covers both ends."""
        return max(-self.low, self.high)
