"""Requests to a calibration pass, and the clipping ranges that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Calibrator = Literal["entropy", "mse", "percentile", "minmax"]
CALIBRATORS: tuple[Calibrator, ...] = ("entropy", "mse", "percentile", "minmax")
Moment = Literal["mean", "peak", "gram"]


@dataclass(frozen=True, slots=True)
class StatRequest:
    """A request for the histogram of one activation tensor.

    Attributes:
        tensor: activation tensor of the float graph.
    """

    tensor: str


@dataclass(frozen=True, slots=True)
class MomentRequest:
    """A request for float sums over one activation tensor.

    Attributes:
        tensor: activation tensor of the float graph, (1, C, ...) .
        kind: "mean" gives the per-channel mean, "peak" the per-channel largest magnitude, both (C,) float64.
            "gram" gives E[x x^T] of the rows x that ``reader`` multiplies with its weights, per group:
            (G, K, K) float64, K = inputs of one output element (channels per group times kernel).
        reader: for "gram", the Conv, Gemm or MatMul whose second input is constant.
    """

    tensor: str
    kind: Moment = "mean"
    reader: str = ""

    @property
    def key(self) -> str:
        """Key of the result: the tensor for means, else ``kind(reader)`` or ``kind(tensor)``."""
        return self.tensor if self.kind == "mean" else f"{self.kind}({self.reader or self.tensor})"


@dataclass(frozen=True, slots=True)
class Range:
    """A clipping range; values outside saturate.

    Attributes:
        low: real number, at most 0.
        high: real number, at least 0.
    """

    low: float
    high: float

    @property
    def threshold(self) -> float:
        """Upper end of the symmetric range that covers both ends."""
        return max(-self.low, self.high)
