"""Pictures for viewers: copied by the loop when asked, scaled and encoded here, once for all viewers."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import cv2

from avq.errors import MachineError
from avq.types import AnyArray
from avq.web.board import Board, Shot

WIDEST_PX = 1280
_QUALITY = 80
_BOXES_TOLD = 60
#: A picture older than this is not shown to somebody new.
_FRESH_NS = 500_000_000
#: No camera is copied for viewers more often than this, however many look.
_LEAST_APART_NS = 150_000_000
_WAIT_S = 2.0
_LOOK_AGAIN_S = 0.02


class Shots:
    """The newest picture of each camera as JPEG.

    Args:
        board: asked for the pictures.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._encoded: dict[str, tuple[Shot, bytes]] = {}
        self._coming: dict[str, asyncio.Task[tuple[Shot, bytes] | None]] = {}
        self._one_at_a_time = ThreadPoolExecutor(1, thread_name_prefix="web-jpeg")

    async def next(self, camera: str, after: int) -> tuple[Shot, bytes] | None:
        """A fresh shot other than number ``after``; None when the camera showed none within two seconds."""
        known = self._encoded.get(camera)
        if known is not None and known[0].number != after and _old_ns(known[0]) < _FRESH_NS:
            return known
        if (coming := self._coming.get(camera)) is None or coming.done():
            coming = self._coming[camera] = asyncio.create_task(self._take(camera))
        return await asyncio.shield(coming)

    async def _take(self, camera: str) -> tuple[Shot, bytes] | None:
        """One new picture for everybody who waits for it."""
        board = self._board.cameras[camera]
        if board.shot is not None:
            await asyncio.sleep(max(0.0, (_LEAST_APART_NS - _old_ns(board.shot)) / 1e9))
        before = board.shot
        board.wanted = True
        for _ in range(round(_WAIT_S / _LOOK_AGAIN_S)):
            await asyncio.sleep(_LOOK_AGAIN_S)
            if (shot := board.shot) is not None and shot is not before:
                loop = asyncio.get_running_loop()
                jpeg = await loop.run_in_executor(self._one_at_a_time, encode, shot)
                self._encoded[camera] = (shot, jpeg)
                return shot, jpeg
            if self._board.over:
                break
        return None

    def close(self) -> None:
        self._one_at_a_time.shutdown()


def _old_ns(shot: Shot) -> int:
    return time.monotonic_ns() - shot.taken_ns


def encode(shot: Shot) -> bytes:
    """JPEG, at most 1280 pixels wide."""
    pixels: AnyArray = shot.frame.pixels
    height_px, width_px = pixels.shape[:2]
    if width_px > WIDEST_PX:
        size = (WIDEST_PX, max(1, round(height_px * WIDEST_PX / width_px)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise MachineError("a picture could not be encoded", seen=f"{width_px}x{height_px}")
    return data.tobytes()


def boxes_of(shot: Shot, labels: tuple[str, ...]) -> str:
    """What belongs to the picture, as JSON for a header: boxes as [x0, y0, x1, y1, score, class] in its pixels."""
    published = shot.published
    seen = published.detections
    height_px, width_px = shot.frame.pixels.shape[:2]
    rows = zip(
        seen.boxes_xyxy_px[:_BOXES_TOLD].tolist(),
        seen.scores[:_BOXES_TOLD].tolist(),
        seen.class_ids[:_BOXES_TOLD].tolist(),
        strict=True,
    )
    told = {
        "number": shot.number,
        "camera": shot.frame.camera,
        "seq": shot.frame.seq,
        "width_px": width_px,
        "height_px": height_px,
        "age_ms": round(published.age_ns / 1e6, 2),
        "late": published.late,
        "mode": published.mode,
        "count": len(seen),
        "boxes": [
            [*(round(v, 1) for v in box), round(score, 3), _name(kind, labels)] for box, score, kind in rows
        ],
    }
    return json.dumps(told, separators=(",", ":"))


def _name(class_id: int, labels: tuple[str, ...]) -> str:
    """The class's name, or its number where the bundle names none."""
    return labels[class_id] if 0 <= class_id < len(labels) else str(class_id)
