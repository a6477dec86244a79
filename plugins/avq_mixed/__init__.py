"""Strategy ``mixed``: INT8 or float per fusion group, by measurement.

Inputs are sensitivities from the workbench and times from the engine's layer counters and from whole-network runs. A
cost model prices groups and precision boundaries; precision maps are solved exactly, and the best are built, checked
and timed. Only measured points enter the front; all-float is a valid result.
"""

from __future__ import annotations

from avq import hookimpl
from avq_mixed.strategy import MixedOptions, MixedQuantizer

__all__ = ["MixedOptions", "MixedQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[MixedQuantizer]:
    return [MixedQuantizer()]
