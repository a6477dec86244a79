"""Camera pictures for viewers: copied by the loop on request, scaled and encoded here once for all viewers."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import cv2

from avq.errors import MachineError
from avq.types import AnyArray
from avq.web.live_state import LiveState, Snapshot

WIDEST_PX = 1280
_QUALITY = 80
_MAX_BOXES = 60
#: A picture older than this is not sent to a new viewer.
_FRESH_NS = 500_000_000
#: Shortest time between two copies of one camera, for any number of viewers.
_LEAST_APART_NS = 150_000_000
_WAIT_S = 2.0
_POLL_S = 0.02


class CameraSnapshots:
    """The newest picture of each camera as JPEG.

    Args:
        live_state: takes requests for pictures and holds the copies.
    """

    def __init__(self, live_state: LiveState) -> None:
        self._live_state = live_state
        self._encoded: dict[str, tuple[Snapshot, bytes]] = {}
        self._coming: dict[str, asyncio.Task[tuple[Snapshot, bytes] | None]] = {}
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="web-jpeg")

    async def next(self, camera: str, after: int) -> tuple[Snapshot, bytes] | None:
        """A fresh snapshot other than number ``after``; None when the camera showed none within two seconds."""
        known = self._encoded.get(camera)
        if known is not None and known[0].number != after and _old_ns(known[0]) < _FRESH_NS:
            return known
        if (coming := self._coming.get(camera)) is None or coming.done():
            coming = self._coming[camera] = asyncio.create_task(self._take(camera))
        return await asyncio.shield(coming)

    async def _take(self, camera: str) -> tuple[Snapshot, bytes] | None:
        """Take one new picture for all waiting viewers."""
        state = self._live_state.cameras[camera]
        if state.snapshot is not None:
            await asyncio.sleep(max(0.0, (_LEAST_APART_NS - _old_ns(state.snapshot)) / 1e9))
        before = state.snapshot
        state.requested = True
        for _ in range(round(_WAIT_S / _POLL_S)):
            await asyncio.sleep(_POLL_S)
            if (snapshot := state.snapshot) is not None and snapshot is not before:
                loop = asyncio.get_running_loop()
                jpeg = await loop.run_in_executor(self._one_at_a_time, encode, snapshot)
                self._encoded[camera] = (snapshot, jpeg)
                return snapshot, jpeg
            if self._live_state.over:
                break
        return None

    def close(self) -> None:
        self._one_at_a_time.shutdown()


def _old_ns(snapshot: Snapshot) -> int:
    return time.monotonic_ns() - snapshot.taken_ns


def encode(snapshot: Snapshot) -> bytes:
    """JPEG, at most 1280 pixels wide."""
    pixels: AnyArray = snapshot.frame.pixels
    height_px, width_px = pixels.shape[:2]
    if width_px > WIDEST_PX:
        size = (WIDEST_PX, max(1, round(height_px * WIDEST_PX / width_px)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise MachineError("a picture could not be encoded", seen=f"{width_px}x{height_px}")
    return data.tobytes()


def boxes_of(snapshot: Snapshot, labels: tuple[str, ...]) -> str:
    """Return the message of a picture as JSON for a header: boxes as [x0, y0, x1, y1, score, class] in its pixels."""
    published = snapshot.published
    detections = published.detections
    height_px, width_px = snapshot.frame.pixels.shape[:2]
    rows = zip(
        detections.boxes_xyxy_px[:_MAX_BOXES].tolist(),
        detections.scores[:_MAX_BOXES].tolist(),
        detections.class_ids[:_MAX_BOXES].tolist(),
        strict=True,
    )
    row = {
        "number": snapshot.number,
        "camera": snapshot.frame.camera,
        "seq": snapshot.frame.seq,
        "width_px": width_px,
        "height_px": height_px,
        "age_ms": round(published.age_ns / 1e6, 2),
        "late": published.late,
        "mode": published.mode,
        "count": len(detections),
        "boxes": [
            [*(round(v, 1) for v in box), round(score, 3), _name(kind, labels)] for box, score, kind in rows
        ],
    }
    return json.dumps(row, separators=(",", ":"))


def _name(class_id: int, labels: tuple[str, ...]) -> str:
    """The class's name, or its number where the bundle names none."""
    return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)
