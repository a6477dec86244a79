"""``avq lint``: the rules of a runtime, checked on a file as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from avq.build.graph.model import read_model
from avq.build.lint import lint


def lint_file(path: Path, target: str) -> dict[str, Any]:
    """The keys of ``avq lint --json``: findings with id, severity, node, what, seen and fix."""
    return {"findings": [asdict(finding) for finding in lint(read_model(path), target)]}
