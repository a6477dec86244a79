"""Logs whose clock was set back, and logs whose topics lie one after the other, are replayed in order."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.writer import CompressionType, Writer

from avq.daemon import source_types
from avq.replay import mcap_log
from avq.replay.log_sources import open_log
from avq.sources import open_source

SECOND_NS = 10**9
THREE_YEARS_NS = 3 * 365 * 86400 * SECOND_NS


def write_log(path: Path, pictures: Iterable[tuple[str, int, int]]) -> None:
    """(topic, time, grey level) of each picture, in file order."""
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE, chunk_size=4096)
        writer.start("", "test")
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channels: dict[str, int] = {}
        for number, (topic, at_ns, grey) in enumerate(pictures):
            if topic not in channels:
                channels[topic] = writer.register_channel(topic, "json", schema)
            jpeg = cv2.imencode(".png", np.full((16, 16, 3), grey, np.uint8))[1].tobytes()
            data = json.dumps({"data": b64encode(jpeg).decode(), "format": "png"}).encode()
            writer.add_message(channels[topic], at_ns, data, at_ns, number)
        writer.finish()


def replayed(path: Path) -> list[tuple[str, int, int]]:
    """(camera, grey level, milliseconds) in the order of the replay."""
    found = []
    for frame in open_log(str(path)).frames():
        pixels = frame.load()
        assert pixels is not None
        found.append((frame.camera, int(pixels[0, 0, 0]), frame.arrival_ns // 1_000_000))
    return found


@pytest.mark.parametrize("step_ns", [-2 * SECOND_NS, -THREE_YEARS_NS, THREE_YEARS_NS])
@pytest.mark.parametrize("topics", [("/a",), ("/a", "/b")])
def test_a_clock_that_was_set_keeps_the_order(tmp_path: Path, step_ns: int, topics: tuple[str, ...]) -> None:
    start_ns = 1_700_000_000 * SECOND_NS
    rows = [
        (topic, start_ns + n * 100_000_000 + k * 1000 + (step_ns if n >= 10 else 0), n)
        for n in range(20)
        for k, topic in enumerate(topics)
    ]
    write_log(tmp_path / "log.mcap", rows)
    got = replayed(tmp_path / "log.mcap")
    assert [(camera, grey) for camera, grey, _ in got] == [(t.strip("/"), n) for t, _, n in rows]
    if step_ns < 0:
        times = [at_ms for camera, _, at_ms in got if camera == "a"]
        assert times == [100 * n for n in range(20)]


def test_topics_one_after_the_other_are_replayed_together_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_ns = 1_700_000_000 * SECOND_NS
    rows = [(topic, start_ns + n * SECOND_NS + k, n) for k, topic in enumerate("ab") for n in range(50)]
    write_log(tmp_path / "log.mcap", rows)
    wanted = sorted((at_ns, topic, n) for topic, at_ns, n in rows)
    assert [(camera, grey) for camera, grey, _ in replayed(tmp_path / "log.mcap")] == [
        (topic, n) for _, topic, n in wanted
    ]
    most: list[int] = []
    take = mcap_log._Waiting.take

    def watched(self: mcap_log._Waiting, key: tuple[str, int]) -> Any:
        record = take(self, key)
        most.append(len(self._waiting))
        return record

    monkeypatch.setattr(mcap_log._Waiting, "take", watched)
    monkeypatch.setattr(mcap_log, "_WAITING_BYTES", 1000)
    assert [(camera, grey) for camera, grey, _ in replayed(tmp_path / "log.mcap")] == [
        (topic, n) for _, topic, n in wanted
    ]
    assert max(most) == 0


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_values_of_10_to_16_bits_are_no_black_pictures(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, (1 << bits) - 1, 256).astype("<u2")[None].repeat(16, axis=0)
    message = {"width": 256, "height": 16, "encoding": "mono16", "step": 512}
    data = json.dumps({**message, "data": b64encode(ramp.tobytes()).decode()}).encode()
    path = tmp_path / "deep.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start("", "test")
        schema = writer.register_schema("foxglove.RawImage", "jsonschema", b"{}")
        channel = writer.register_channel("/deep", "json", schema)
        writer.add_message(channel, 1, data, 1)
        writer.finish()
    (frame,) = open_log(str(path)).frames()
    replay = frame.load()
    served = open_source(str(path), source_types()).read()
    assert replay is not None and served is not None and np.array_equal(replay, served[0])
    assert np.abs(replay[0, :, 0].astype(int) - np.arange(256)).max() <= 1
