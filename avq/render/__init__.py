"""Reports for people: one HTML page kit, charts, boxes on pictures, short clips.

Build, replay and demo share it: ``page(title, headline, [section(...), ...])`` is one file that asks nothing
of the network, light or dark as the reader's system is, and readable on a phone.
"""

from __future__ import annotations

from avq.render.charts import Bar, Mark, bar_chart, histogram, strip
from avq.render.clip import write_clip
from avq.render.page import (
    Fact,
    Headline,
    Html,
    code,
    columns,
    headline_of,
    key_figures,
    page,
    prose,
    section,
    table,
)
from avq.render.pictures import draw_detections, picture, picture_pair, video

__all__ = [
    "Bar",
    "Fact",
    "Headline",
    "Html",
    "Mark",
    "bar_chart",
    "code",
    "columns",
    "draw_detections",
    "headline_of",
    "histogram",
    "key_figures",
    "page",
    "picture",
    "picture_pair",
    "prose",
    "section",
    "strip",
    "table",
    "video",
    "write_clip",
]
