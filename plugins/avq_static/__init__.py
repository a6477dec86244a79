"""Strategy ``static``: INT8 with every scale fixed by one pass over the calibration pictures.

Weights have a scale per channel; ranges come from entropy, MSE, percentile or min-max. ``calibrator=auto`` scores all
four on held-out pictures and keeps the best. The channels of depthwise convolutions differ in range but share one
scale, which makes many detectors collapse: ``depthwise=auto`` measures them in INT8 and in float.
"""

from __future__ import annotations

from avq import hookimpl
from avq_static.options import StaticOptions
from avq_static.strategy import StaticQuantizer

__all__ = ["StaticOptions", "StaticQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[StaticQuantizer]:
    return [StaticQuantizer()]
