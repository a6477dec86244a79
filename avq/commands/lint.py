"""``avq lint``: the rules of a runtime, checked on a file as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avq.builder.graph.model import read_model
from avq.builder.lint import lint
from avq.engines.common import spelled
from avq.errors import RequestError


def lint_file(path: Path, target: str, gpu_arch: Sequence[str] = ()) -> dict[str, Any]:
    """The keys of ``avq lint --json``: findings with id, severity, node, what, seen and fix.

    Raises RequestError for names in ``gpu_arch`` that are no architecture.
    """
    architectures = [spelled(name) for name in gpu_arch]
    for name in architectures:
        if not re.fullmatch(r"sm\d+", name):
            raise RequestError(
                f"'{name}' is no GPU architecture", seen="--gpu-arch", fix="sm89, or sm75,sm89"
            )
    return {"findings": [asdict(finding) for finding in lint(read_model(path), target, architectures)]}
