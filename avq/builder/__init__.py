"""From a float ONNX model and pictures to a bundle.

Read in this order: request, pictures, graph, frontend, calibrate, workbench, planning, lower, bench, stage,
verify, gate, report; ``pipeline.run_build`` is the diagram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avq.builder.outcome import Outcome
    from avq.plugins import PluginHost
    from avq.progress import Reporter
    from avq.types import Recipe


def build(recipe: Recipe, host: PluginHost, report: Reporter, *, ray: str | None = None) -> Outcome:
    """Build one bundle; see ``pipeline.run_build``. The onnx package is loaded here, not on import.

    ``ray`` distributes calibration and plan evaluation: "local", or the address of a Ray cluster.
    """
    from avq.builder.pipeline import run_build
    from avq.parallel import worker_pool

    with worker_pool(ray) as pool:
        return run_build(recipe, host, report, pool)
