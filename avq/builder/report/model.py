"""What the model is and how its pictures are prepared."""

from __future__ import annotations

import msgspec

from avq.builder.report.story import Story
from avq.render import Html, prose, section, table


def model(story: Story) -> Html:
    """Messages of the front end, the head, the preprocessing."""
    understood = story.understood
    spec, head = msgspec.to_builtins(understood.spec), understood.decoder
    facts = [*understood.messages, *(f"warning: {w}" for w in understood.warnings)]
    settings = [{"setting": key, "value": str(value)} for key, value in spec.items()]
    rows = [
        {"setting": "head", "value": head.family},
        {"setting": "classes", "value": str(head.num_classes)},
        *settings,
    ]
    said = ". ".join(fact.rstrip(".") for fact in facts) + "." if facts else "The model needed no changes."
    return section("Model and preprocessing", prose(_capital(said)), table(rows))
