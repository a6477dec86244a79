"""The pictures of one build: what is calibrated with, what is held out, and what is labelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture, split
from avq.progress import Reporter
from avq.types import U8, Recipe

# Enough to tell one preprocessing from another; more would only take time.
SAMPLES = 16


@dataclass(frozen=True)
class Pictures:
    """A picture set, split once.

    Attributes:
        calibration: what ranges are made from.
        held_out: what plans, engines and the gate are judged on; the last 20 % by digest.
    """

    calibration: CalibrationSet
    held_out: CalibrationSet

    def samples(self) -> Sequence[U8]:
        """Up to SAMPLES calibration pictures, evenly spread over the set."""
        items = self.calibration.items
        step = max(1, len(items) // SAMPLES)
        return [read_picture(item) for item in items[::step][:SAMPLES]]


def open_pictures(recipe: Recipe, report: Reporter) -> Pictures:
    """Digest and split the pictures of ``recipe.data``; DataError when there are none or some are damaged.

    Without ``recipe.data`` both sets are empty.
    """
    if recipe.data is None:  # strategies that import need none
        nothing = CalibrationSet(Path(), ())
        return Pictures(nothing, nothing)
    calibration, held_out = split(open_set(recipe.data, report))
    for message in calibration.messages:
        report.message(message)
    return Pictures(calibration, held_out)
