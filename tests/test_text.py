"""Text that UTF-8 cannot hold is escaped, and only that."""

from __future__ import annotations

import msgspec

from avq.daemon.capture_protocol import (
    CaptureSettings,
    Failed,
    Unframer,
    decode,
    decode_settings,
    framed,
    framed_settings,
)
from avq.text import map_texts, utf8


def test_only_lone_surrogates_are_escaped() -> None:
    assert utf8("Füße \U0001f697") == "Füße \U0001f697"
    assert utf8("caf\udce9.jpg") == "caf\\udce9.jpg"


def test_whole_events_are_cleaned_and_clean_ones_are_kept() -> None:
    event = {"kind": "x", "path": "a\ud800", "rows": [{"b": "c\udcff"}, 1, None]}
    cleaned = map_texts(event, utf8)
    assert msgspec.json.encode(cleaned) and cleaned["rows"][0]["b"] == "c\\udcff"
    good = {"kind": "x", "rows": [1, "ü"]}
    assert map_texts(good, utf8) is good


def test_messages_of_captures_hold_any_text() -> None:
    (body,) = Unframer().feed(framed(Failed("DataError", "caf\udce9", "", "", {})))
    message = decode(body)
    assert isinstance(message, Failed) and message.what == "caf\\udce9"
    (body,) = Unframer().feed(framed_settings(CaptureSettings("front", "/data/caf\udce9.mp4")))
    assert decode_settings(body).uri == "/data/caf\udce9.mp4"
