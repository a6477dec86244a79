"""Precision by measurement. The strategy ``mixed``.

Every fusion group runs in INT8 or stays float, whichever the measurement prefers: sensitivities from the
workbench, times from the engine's own counters and whole-network runs, boundaries priced, the map solved exactly
and the best ones really built, checked and timed. Only measured points enter the front; all-float is a
legal answer.
"""

from __future__ import annotations

from avq import hookimpl
from avq_mixed.strategy import MixedOptions, MixedQuantizer

__all__ = ["MixedOptions", "MixedQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[MixedQuantizer]:
    return [MixedQuantizer()]
