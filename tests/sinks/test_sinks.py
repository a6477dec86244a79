"""Sinks write what the command contract promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.daemon import sink_types
from avq.errors import DataError, RequestError
from avq.sinks import JsonLinesSink, open_sink
from avq.types import Detections, Published

LABELS = ("car", "person")


def published(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Published:
    seen = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        "front",
        7,
        123_456_789,
    )
    return Published(seen, 4_567_891, 2, True, "normal", "abc")


def test_a_line_holds_the_promised_keys(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "o.jsonl"), sink_types(), labels=LABELS)
    sink.write(published([[1, 2.5, 30.1234567, 40]], [0.9], [1]), None)
    sink.write(published([], [], []), None)
    sink.close()
    first, second = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert first == {
        "camera": "front",
        "seq": 7,
        "t_capture_ns": 123_456_789,
        "age_ms": 4.568,
        "late": True,
        "mode": "normal",
        "bundle": "abc",
        "detections": [{"label": "person", "score": 0.9, "box_xyxy_px": [1.0, 2.5, 30.123, 40.0]}],
    }
    assert second["detections"] == []


@given(
    st.lists(st.lists(st.floats(0, 8192, width=32), min_size=4, max_size=4), min_size=1, max_size=20),
    st.floats(0, 1, width=32),
)
def test_numbers_are_kept_to_the_precision_promised(boxes: list[list[float]], score: float) -> None:
    message = published(boxes, [score] * len(boxes), [5] * len(boxes))
    rows = message.as_message(LABELS)["detections"]
    assert [row["label"] for row in rows] == ["5"] * len(boxes)  # a class without a name keeps its number
    written = np.array([row["box_xyxy_px"] for row in rows])
    assert np.abs(written - np.array(boxes)).max() <= 0.0005 + 1e-9
    assert all(abs(row["score"] - score) <= 0.000005 + 1e-9 for row in rows)


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    sink = open_sink(f"jsonl:{tmp_path / 'any name'}", sink_types(), labels=LABELS)
    sink.write(published([], [], []), None)
    assert (tmp_path / "any name").read_text().endswith("}\n")
    sink.close()


def test_lines_stay_whole_in_a_pipe_that_never_waits() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    sink = JsonLinesSink(os.fdopen(writer, "wb", buffering=0), LABELS)
    seen = published([[1, 2, 3, 4]] * 500, [0.5] * 500, [0] * 500)

    def write() -> None:
        for _ in range(20):
            sink.write(seen, None)
        sink.close()

    writing = threading.Thread(target=write)
    writing.start()
    with os.fdopen(reader, "rb") as lines:
        found = [json.loads(line) for line in lines]
    writing.join(60)
    assert len(found) == 20 and all(line == seen.as_message(LABELS) for line in found)


def test_standard_output_stays_open_after_the_sink() -> None:
    code = (
        "from avq.daemon import sink_types; from avq.sinks import open_sink; from tests.sinks.test_sinks import *\n"
        "s = open_sink('-', sink_types(), labels=LABELS); s.write(published([], [], []), None); s.close()\n"
        "print('end')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    line, end = done.stdout.splitlines()
    assert json.loads(line)["camera"] == "front" and end == "end"


def test_wrong_sinks_are_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no sink writes") as caught:
        open_sink("out.jsnl", sink_types(), labels=LABELS)
    assert "did you mean '.jsonl'?" in caught.value.fix
    with pytest.raises(RequestError, match="no sink writes"):
        open_sink("amqp://broker/topic", sink_types(), labels=LABELS)
    with pytest.raises(DataError, match="cannot be written"):
        open_sink(str(tmp_path / "no" / "folder" / "o.jsonl"), sink_types(), labels=LABELS)
