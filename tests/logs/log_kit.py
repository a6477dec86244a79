"""Logs for these tests: short flight records, and what is left of them after an accident."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from avq.clock import UnixClock
from avq.recording import LogReader, Record, RecorderSink
from avq.types import Detections, Frame, Published, StageTimes

LABELS = ("car", "pedestrian", "traffic_light")
BOXES = np.array([[20, 20, 60, 60], [100, 30, 120, 90], [150, 5, 160, 30]], np.float32)
FPS = 10
START_NS = 1_000_000_000


def picture(seq: int) -> np.ndarray:
    """Noise: blurring it is seen at once."""
    return np.random.default_rng(seq).integers(0, 255, (100, 200, 3), np.uint8)


def write_drive(
    path: Path, frames: range, *, image: str = "png", events: dict[int, str] | None = None
) -> None:
    """One picture, three boxes and a line of timing per frame; ``events`` by frame number."""
    clock = UnixClock(lambda: 1_700_000_000_000_000_000, lambda: 0, lambda: 0)
    sink = RecorderSink(path, labels=LABELS, image=image, clock=clock)
    for seq in frames:
        t_ns = START_NS + seq * 1_000_000_000 // FPS
        seen = Detections(
            BOXES, np.full(3, 0.9, np.float32), np.arange(3, dtype=np.int64), "front", seq, t_ns
        )
        message = Published(seen, 5_000_000, 0, False, "normal", "d1")
        sink.write_timing(message, StageTimes(1, 2, 3, 4))
        sink.write(message, Frame("front", seq, t_ns, picture(seq)))
        if events and seq in events:
            sink.write_event({"kind": events[seq], "t_ns": t_ns, "reason": "test"})
    sink.close()


def records(path: Path) -> list[Record]:
    with LogReader(path) as log:
        return list(log)


def frames_of(path: Path) -> list[int]:
    return [json.loads(r.data)["seq"] for r in records(path) if r.schema_name == "avq.Detections"]
