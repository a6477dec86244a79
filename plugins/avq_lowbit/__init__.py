"""Strategy ``lowbit``: gradual bit reduction, with weights of 8, 6, 4, 3, 2 and 1 bit per layer.

Every layer starts with 8-bit weights. The layer whose next smaller width adds the least error per saved byte is
reduced next; points of this walk are corrected and measured, and the smallest inside the limit is built. Weights are
packed in the file and unpacked when an engine loads it, so the bundle has the size of its bits.
"""

from __future__ import annotations

from avq import hookimpl
from avq_lowbit.strategy import LowbitOptions, LowbitQuantizer

__all__ = ["LowbitOptions", "LowbitQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[LowbitQuantizer]:
    return [LowbitQuantizer()]
