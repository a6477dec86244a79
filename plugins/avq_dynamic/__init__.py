"""Strategy ``dynamic``: activations quantized at run time, for networks of matrix products on CPUs.

Scales are computed from every picture, so no calibration is needed and ranges cannot drift; the cost is one pass over
the whole tensor before each product. Weights are INT8, one scale per output column. Convolutions stay float unless
the option ``convolutions`` requests INT8: no CPU engine was measured to run them faster with run-time scales.
"""

from __future__ import annotations

from avq import hookimpl
from avq_dynamic.strategy import DynamicOptions, DynamicQuantizer

__all__ = ["DynamicOptions", "DynamicQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[DynamicQuantizer]:
    return [DynamicQuantizer()]
