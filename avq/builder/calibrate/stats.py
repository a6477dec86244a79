"""Ranges from histograms: the CalibrationStats a strategy gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.thresholds import find_range
from avq.errors import CalibrationError, nearest
from avq.types import Calibrator, Range


class HistogramStats:
    """Implements :class:`avq.CalibrationStats`; every answer is computed once.

    Args:
        histograms: by tensor name; must not change afterwards.
    """

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self._histograms = histograms
        self._ranges: dict[tuple[object, ...], Range] = {}

    @property
    def tensors(self) -> Sequence[str]:
        return sorted(self._histograms)

    def histogram(self, tensor: str) -> Histogram:
        """The counts of ``tensor``. Raises CalibrationError when it was not collected."""
        if tensor not in self._histograms:
            raise CalibrationError(
                f"the tensor '{tensor}' was not collected", fix=nearest(tensor, self._histograms)
            )
        return self._histograms[tensor]

    def range(
        self,
        tensor: str,
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """The clipping range ``method`` chooses, see :func:`avq.builder.calibrate.thresholds.find_range`.

        Raises CalibrationError when the tensor was not collected, is empty, or held NaN or Inf.
        """
        return self.merged_range((tensor,), method, bits=bits, symmetric=symmetric, percentile=percentile)

    def merged_range(
        self,
        tensors: Sequence[str],
        method: Calibrator,
        *,
        bits: int = 8,
        symmetric: bool = True,
        percentile: float = 99.99,
    ) -> Range:
        """One range for tied tensors, from the sum of their counts; errors as :meth:`range`."""
        names = tuple(sorted(set(tensors)))
        key = (names, method, bits, symmetric, percentile if method == "percentile" else None)
        if key not in self._ranges:
            merged = self._merged(names)
            self._ranges[key] = find_range(
                merged, method, bits=bits, symmetric=symmetric, percentile=percentile
            )
        return self._ranges[key]

    def _merged(self, names: Sequence[str]) -> Histogram:
        for name in names:
            _check_finite(name, self.histogram(name))
        if len(names) == 1:
            return self.histogram(names[0])
        merged = Histogram()
        for name in names:
            merged.merge(self.histogram(name))
        return merged


def _check_finite(name: str, histogram: Histogram) -> None:
    if histogram.nans or histogram.infinities:
        raise CalibrationError(
            f"the tensor '{name}' held numbers that are not finite",
            seen=f"{histogram.nans} NaN and {histogram.infinities} Inf beside {histogram.count} finite ones",
            fix="the float model itself breaks on these pictures: check --preprocess and the model",
        )
    if not histogram.count:
        raise CalibrationError(
            f"the tensor '{name}' has no values", seen="0 values", fix="calibrate on at least one picture"
        )
