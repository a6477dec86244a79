"""What a runtime would reject in a quantized model or, worse, silently misread.

The rules for TensorRT and TensorRT-RTX are those of its ``IQuantizeLayer`` documentation and of the ONNX parser
(onnx-tensorrt ``docs/operators.md``); many were found by feeding the parser such files. A float model has nothing to
find. Families: grids (scales, zero points), blocks (scales per block), four_bits (INT4), both_sides (integers that
meet), pairs (Q with DQ), placement (where they stand), structure (what is no ONNX graph), operators (what the parser
has no importer for), architectures (what some GPUs lack).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from avq.builder.lint import grids, kernels, placement, structure, types
from avq.builder.lint.graph import LintGraph
from avq.builder.lint.rule import REGISTERED, LintFinding, Rule
from avq.errors import RequestError, nearest
from avq.types import TARGETS, Finding

__all__ = ["FAMILIES", "LintFinding", "RULES", "Rule", "lint", "lint_errors"]

FAMILIES = (grids, kernels, placement, structure, types)
#: The one table, by id.
RULES: tuple[Rule, ...] = tuple(sorted(REGISTERED, key=lambda rule: rule.id))


def lint(proto: onnx.ModelProto, target: str, gpu_arch: Sequence[str] = ()) -> tuple[LintFinding, ...]:
    """Everything ``target`` would reject or misread in ``proto``, in order of the rules.

    ``gpu_arch`` names the GPU architectures it is for, such as "sm75": then what these lack is told too.

    Raises RequestError for an unknown target.
    """
    if target not in TARGETS:
        raise RequestError(f"there is no target '{target}'", fix=nearest(target, TARGETS))
    graph = LintGraph(proto, target, tuple(gpu_arch))
    return tuple(found for rule in RULES if target in rule.targets for found in rule.findings(graph))


def lint_errors(model: bytes, target: str, gpu_arch: Sequence[str] = ()) -> tuple[Finding, ...]:
    """What rejects a file for ``target``; nothing for a plugin's engine, whose rules are not known here."""
    if target not in TARGETS:
        return ()
    found = lint(onnx.load_model_from_string(model), target, gpu_arch)
    return tuple(finding.as_finding() for finding in found if finding.severity == "error")
