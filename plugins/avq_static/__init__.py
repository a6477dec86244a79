"""Static INT8: one pass over the calibration pictures fixes every scale. The strategy ``static``.

Per-channel weights, ranges by entropy, MSE, percentile or min-max; ``calibrator=auto`` scores all four on
pictures the ranges were not made from and keeps the best. Depthwise convolutions give each channel a range of
its own under one scale, which is what makes many detectors collapse: ``depthwise=auto`` measures both ways.
"""

from __future__ import annotations

from avq import hookimpl
from avq_static.options import StaticOptions
from avq_static.strategy import StaticQuantizer

__all__ = ["StaticOptions", "StaticQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[StaticQuantizer]:
    return [StaticQuantizer()]
