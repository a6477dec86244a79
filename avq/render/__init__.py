"""Reports for people: one HTML page kit, charts, boxes on pictures, short clips.

Build, replay and demo share it: ``page(title, headline, [section(...), ...])`` is one file that requests nothing
of the network, light or dark as the reader's system is, and readable on a phone.
"""

from __future__ import annotations

from avq.render.charts import (
    Bar,
    Mark,
    PairRow,
    bar_chart,
    histogram,
    log_histogram,
    pair_bars,
    profile,
    strip,
)
from avq.render.page import (
    Cause,
    Fact,
    Headline,
    Html,
    Tone,
    causes,
    code,
    columns,
    folded,
    headline_of,
    key_figures,
    page,
    prose,
    section,
    table,
)
from avq.render.pictures import draw_detections, picture, picture_pair, video, write_clip
from avq.render.scatter import figure_chart

__all__ = [
    "Bar",
    "Cause",
    "Fact",
    "Headline",
    "Html",
    "Mark",
    "PairRow",
    "Tone",
    "bar_chart",
    "causes",
    "code",
    "columns",
    "draw_detections",
    "figure_chart",
    "folded",
    "headline_of",
    "histogram",
    "key_figures",
    "log_histogram",
    "page",
    "pair_bars",
    "picture",
    "picture_pair",
    "profile",
    "prose",
    "section",
    "strip",
    "table",
    "video",
    "write_clip",
]
