"""``avq lint``: check a model file against the rules of a runtime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from avq.builder.graph.model import read_model
from avq.builder.lint import lint
from avq.engines.common import spelled
from avq.errors import RequestError


class FindingJson(TypedDict):
    """One violation of a rule."""

    id: str
    severity: str
    node: str
    what: str
    seen: str
    fix: str


class LintJson(TypedDict):
    """Object of ``avq lint --json``."""

    findings: list[FindingJson]


def lint_file(path: Path, target: str, gpu_arch: Sequence[str] = ()) -> LintJson:
    """Check a model file, unchanged, against the rules of a runtime.

    Args:
        path: ONNX file.
        target: runtime whose rules to check.
        gpu_arch: compute capabilities to check too, such as "sm89".

    Raises:
        RequestError: unknown ``target``, or a name in ``gpu_arch`` that is not an architecture.
        ModelError: the file cannot be read.
    """
    architectures = [spelled(name) for name in gpu_arch]
    for name in architectures:
        if not re.fullmatch(r"sm\d+", name):
            raise RequestError(
                f"'{name}' is not a GPU architecture",
                seen="--gpu-arch",
                fix="for example: sm89, or sm75,sm89",
            )
    findings: list[FindingJson] = [
        {
            "id": finding.id,
            "severity": finding.severity,
            "node": finding.node,
            "what": finding.what,
            "seen": finding.seen,
            "fix": finding.fix,
        }
        for finding in lint(read_model(path), target, architectures)
    ]
    return {"findings": findings}
