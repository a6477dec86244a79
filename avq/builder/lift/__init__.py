"""Import quantized files of other tools: a float graph, and the points on its edges."""

from __future__ import annotations

from avq.builder.lift.dynamic import RUN_TIME_DIALECT, is_dynamic, lift_dynamic
from avq.builder.lift.lift import (
    Imported,
    Marked,
    import_model,
    is_quantized,
    lift,
    mark,
    mark_file,
    on_folded_input,
    runnable,
)
from avq.builder.lift.parity import Parity, prove
from avq.builder.lift.part_parity import prove_operators, prove_products
from avq.builder.lift.qoperator import has_integer_operators, in_qdq_form

__all__ = [
    "RUN_TIME_DIALECT",
    "Imported",
    "Marked",
    "Parity",
    "has_integer_operators",
    "import_model",
    "in_qdq_form",
    "is_dynamic",
    "is_quantized",
    "lift",
    "lift_dynamic",
    "mark",
    "mark_file",
    "on_folded_input",
    "prove",
    "prove_operators",
    "prove_products",
    "runnable",
]
