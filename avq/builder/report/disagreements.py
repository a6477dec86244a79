"""The pictures on which float and the bundle disagree most, side by side."""

from __future__ import annotations

from avq.builder.pictures.disagreement import SHOWN_SCORE, worst_pairs
from avq.builder.report.story import Story
from avq.render import Html, section

_SHOWN_FRAMES = 4


def disagreements(story: Story) -> list[Html]:
    """Nothing for models without boxes."""
    found, expected = story.outcome.verified.detections, story.probe_set.float_detections
    if found is None or expected is None:
        return []
    names = story.understood.class_names
    pairs = worst_pairs(
        story.probe_set.items, expected, found, names, named="this bundle", count=_SHOWN_FRAMES
    )
    lead = f"Of {len(found)} pictures judged on, worst first; boxes with score >= {SHOWN_SCORE:g}."
    return [section("Where float and this bundle disagree most", *pairs, lead=lead)]
