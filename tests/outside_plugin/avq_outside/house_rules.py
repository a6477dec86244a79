"""Rules of this plugin's owner for every bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from avq.toolbox import place
from avq.types import Finding, GraphView

_LIMIT_MB = "OUTSIDE_MAX_MB"


def first_layer(graph: GraphView) -> Mapping[str, str]:
    """The first weighted operator, with the reason why it stays float."""
    return {p.node: "the first layer reads the whole range of the camera" for p in place(graph)[:1]}


def size_findings(bundle: Path) -> list[Finding]:
    """How large the bundle is; an error above the limit that the environment sets."""
    size_mb = sum(path.stat().st_size for path in bundle.iterdir()) / 1e6
    limit_mb = float(os.environ.get(_LIMIT_MB, "500"))
    size_line = f"{size_mb:.1f} MB of {limit_mb:g} MB"
    if size_mb > limit_mb:
        return [Finding("error", "outside-size", "the bundle is too large", size_line, f"raise {_LIMIT_MB}")]
    return [Finding("info", "outside-size", "the bundle fits", size_line)]
