"""Gradual bit reduction: weights of 8, 6, 4, 3, 2 and 1 bit, layer by layer. The strategy ``lowbit``.

Every layer begins with 8-bit weights. The one whose next smaller width adds the least error per byte it saves goes
next; points of this walk are corrected and really judged, and the smallest inside the limit is built. Weights are
packed in the file and unpacked when an engine loads it, so a bundle takes the bytes its bits say.
"""

from __future__ import annotations

from avq import hookimpl
from avq_lowbit.strategy import LowbitOptions, LowbitQuantizer

__all__ = ["LowbitOptions", "LowbitQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[LowbitQuantizer]:
    return [LowbitQuantizer()]
