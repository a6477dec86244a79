"""Both runs in one MCAP: two layers of annotations on the camera's pictures, and what differs as messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from avq.atomic_file import written_whole
from avq.recording import LogWriter
from avq.recording.recorder import annotations_message, picture_message
from avq.recording.schemas import COMPRESSED_IMAGE, IMAGE_ANNOTATIONS
from avq.replay.frames import FrameKey
from avq.replay.outcome import Outcome
from avq.replay.result import Answer, ReplayResult
from avq.types import U8

#: With pictures of the worst frames the file stays below the report's 3 MB.
_PICTURE_BYTES = 2_000_000
_MOST_LOG_FRAMES = 400
_DIFFERENCE: Mapping[str, Any] = {
    "title": "avq.Difference",
    "type": "object",
    "properties": {"frame": {"type": "integer"}, "camera": {"type": "string"}, "field": {"type": "string"}},
}


def write_both(path: Path, outcome: Outcome, pictures: Mapping[FrameKey, U8]) -> None:
    """Frames that differ, worst first in number, in order of time; whole or not at all.

    Raises DataError when it cannot be written.
    """
    chosen = {pair.key for pair in outcome.worst_pairs()[:_MOST_LOG_FRAMES]} | set(pictures)
    with written_whole(path) as aside:
        log = LogWriter(aside, {"format": "avq replay both 1", "headline": outcome.headline})
        _write_pictures(log, outcome.result, pictures)
        for name, run in (("reference", outcome.reference), ("replay", outcome.result)):
            for answer in run.answers if run is not None else ():
                if answer.key in chosen:
                    _write_boxes(log, name, answer, outcome.result)
        at_ns = {answer.key: _stamp(answer, outcome.result) for answer in outcome.result.answers}
        for difference in outcome.differences[: 10 * _MOST_LOG_FRAMES]:
            stamp = at_ns.get((difference.camera, difference.frame), outcome.result.start_unix_ns)
            log.write(
                "/avq/differences",
                _DIFFERENCE,
                difference.as_dict(),
                log_time_ns=stamp,
                publish_time_ns=stamp,
            )
        log.close()


def _stamp(answer: Answer, result: ReplayResult) -> int:
    return result.start_unix_ns + answer.detections.t_capture_ns


def _write_pictures(log: LogWriter, result: ReplayResult, pictures: Mapping[FrameKey, U8]) -> None:
    room = _PICTURE_BYTES
    for answer in result.answers:
        pixels = pictures.get(answer.key)
        if pixels is None:
            continue
        encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
        room -= len(encoded)
        if room < 0:
            return
        stamp = _stamp(answer, result)
        message = picture_message(encoded, "jpeg", answer.detections.camera, stamp)
        topic = f"/camera/{answer.detections.camera}/image"
        log.write(topic, COMPRESSED_IMAGE, message, log_time_ns=stamp, publish_time_ns=stamp)


def _write_boxes(log: LogWriter, name: str, answer: Answer, result: ReplayResult) -> None:
    stamp = _stamp(answer, result)
    message = annotations_message(answer.published, result.labels, stamp)
    topic = f"/camera/{answer.detections.camera}/{name}"
    log.write(
        topic,
        IMAGE_ANNOTATIONS,
        message,
        log_time_ns=stamp,
        publish_time_ns=stamp,
        sequence=answer.detections.seq,
    )
