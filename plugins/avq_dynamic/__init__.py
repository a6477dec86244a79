"""Activations quantized at run time, for networks of matrix products on CPUs. The strategy ``dynamic``.

Every picture brings its own scales, so no range can be calibrated wrongly and none can drift; the price is a look
at the whole tensor before each product. Weights are INT8, one scale per output column. Convolutions stay
float unless asked for: no CPU engine was measured to run them faster with scales found at run time.
"""

from __future__ import annotations

from avq import hookimpl
from avq_dynamic.strategy import DynamicOptions, DynamicQuantizer

__all__ = ["DynamicOptions", "DynamicQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[DynamicQuantizer]:
    return [DynamicQuantizer()]
