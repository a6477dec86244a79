"""Import quantized files of other tools: a float graph, and the points on its edges."""

from __future__ import annotations

from avq.builder.lift.lift import Imported, Marked, import_model, is_quantized, lift, mark, on_folded_input
from avq.builder.lift.parity import Parity, prove

__all__ = [
    "Imported",
    "Marked",
    "Parity",
    "import_model",
    "is_quantized",
    "lift",
    "mark",
    "on_folded_input",
    "prove",
]
