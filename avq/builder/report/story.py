"""All that the sections of a build's report are told from."""

from __future__ import annotations

from dataclasses import dataclass

from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.frontend.analyse import Understood
from avq.builder.outcome import Outcome
from avq.builder.planning import Planned
from avq.builder.probe_set import ProbeSet
from avq.builder.request import Request
from avq.builder.trials.layer_costs import LayerCosts


@dataclass(frozen=True)
class Story:
    """One build.

    Attributes:
        stats: counts of the calibration pass; None for a float bundle.
        costs: measured layers of the chosen engine, float against the plan; None where it does not tell.
    """

    outcome: Outcome
    request: Request
    understood: Understood
    planned: Planned
    probe_set: ProbeSet
    stats: HistogramStats | None = None
    costs: LayerCosts | None = None
