"""What a runtime would reject in a quantized model or, worse, silently misread.

The rules for TensorRT and TensorRT-RTX are those of its ``IQuantizeLayer`` documentation and of the ONNX parser
(onnx-tensorrt ``docs/operators.md``); many were found by feeding the parser such files. A float model has nothing to
find. Families: grids (scales, zero points), pairs (Q with DQ), placement (where they stand), structure (what is no
ONNX graph), operators (what the parser has no importer for).
"""

from __future__ import annotations

import onnx

from avq.build.lint import grids, operators, pairs, placement, structure
from avq.build.lint.graph import LintGraph
from avq.build.lint.rule import REGISTERED, LintFinding, Rule
from avq.errors import RequestError, nearest
from avq.types import TARGETS

__all__ = ["FAMILIES", "LintFinding", "RULES", "Rule", "lint"]

FAMILIES = (grids, pairs, placement, structure, operators)
#: The one table, by id.
RULES: tuple[Rule, ...] = tuple(sorted(REGISTERED, key=lambda rule: rule.id))


def lint(proto: onnx.ModelProto, target: str) -> tuple[LintFinding, ...]:
    """Everything ``target`` would reject or misread in ``proto``, in order of the rules.

    Raises RequestError for an unknown target.
    """
    if target not in TARGETS:
        raise RequestError(f"there is no target '{target}'", fix=nearest(target, TARGETS))
    graph = LintGraph(proto, target)
    return tuple(found for rule in RULES if target in rule.targets for found in rule.findings(graph))
