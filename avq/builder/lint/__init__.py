"""Lint rules: what a runtime rejects in a quantized model or silently misreads.

The rules for TensorRT and TensorRT-RTX come from the documentation of ``IQuantizeLayer`` and of the ONNX parser
(onnx-tensorrt ``docs/operators.md``), and from tests of the parser. A quantized model breaks them more often than a
float one. Families, one module each:

- grids: scales, zero points, scales per block;
- kernels: integers that meet in one operator, Q/DQ pairs;
- placement: where Q/DQ are placed;
- structure: invalid ONNX graphs;
- types: operators, element types, INT4 and GPU architectures that are not supported.
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
#: Every rule, sorted by id.
RULES: tuple[Rule, ...] = tuple(sorted(REGISTERED, key=lambda rule: rule.id))


def lint(proto: onnx.ModelProto, target: str, gpu_arch: Sequence[str] = ()) -> tuple[LintFinding, ...]:
    """Check a model against the rules of one target.

    Args:
        proto: the model.
        target: one of `TARGETS`.
        gpu_arch: GPU architectures, such as "sm75", whose missing types are checked too.

    Returns:
        Findings in the order of the rules.

    Raises:
        RequestError: unknown target.
    """
    if target not in TARGETS:
        raise RequestError(f"there is no target '{target}'", fix=nearest(target, TARGETS))
    graph = LintGraph(proto, target, tuple(gpu_arch))
    return tuple(finding for rule in RULES if target in rule.targets for finding in rule.findings(graph))


def lint_errors(model: bytes, target: str, gpu_arch: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Findings that reject a file for ``target``; empty for engines of plugins, which have no rules here."""
    if target not in TARGETS:
        return ()
    findings = lint(onnx.load_model_from_string(model), target, gpu_arch)
    return tuple(finding.as_finding() for finding in findings if finding.severity == "error")
