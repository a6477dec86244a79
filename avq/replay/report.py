"""Report of a replay: Markdown for a pull request, an HTML page, and an MCAP file with both runs for Foxglove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from avq.atomic_file import PRIVATE_MODE, atomic_write, atomic_write_path
from avq.errors import DataError
from avq.plugins import PluginHost
from avq.recording import LogWriter
from avq.recording.recorder import annotations_message, image_message
from avq.recording.schemas import COMPRESSED_IMAGE, IMAGE_ANNOTATIONS
from avq.replay.log import FrameKey, read_pictures
from avq.replay.log_sources import open_log
from avq.replay.outcome import Outcome, difference_row, metric_rows
from avq.replay.report_page import replay_page, shown_pairs
from avq.replay.result import Answer, ReplayResult
from avq.replay.stage_times import table_of
from avq.types import U8

#: With pictures of the worst frames the file stays below the report's 3 MB.
_PICTURE_BYTES = 2_000_000
_MAX_LOG_FRAMES = 400
_DIFFERENCE: Mapping[str, Any] = {
    "title": "avq.Difference",
    "type": "object",
    "properties": {"frame": {"type": "integer"}, "camera": {"type": "string"}, "field": {"type": "string"}},
}


def write_comparison_log(path: Path, outcome: Outcome, pictures: Mapping[FrameKey, U8]) -> None:
    """Write an MCAP file with the frames that differ most: pictures, boxes of both runs, and the differences.

    Raises:
        DataError: the file cannot be written.
    """
    chosen = {pair.key for pair in outcome.worst_pairs()[:_MAX_LOG_FRAMES]} | set(pictures)
    with atomic_write_path(path, PRIVATE_MODE) as temporary:
        log = LogWriter(
            temporary, {"format": "avq replay both 1", "headline": outcome.headline}, temporary=True
        )
        _write_pictures(log, outcome.result, pictures)
        for name, run in (("reference", outcome.reference), ("replay", outcome.result)):
            for answer in run.answers if run is not None else ():
                if answer.key in chosen:
                    _write_boxes(log, name, answer, outcome.result)
        at_ns = {answer.key: _stamp(answer, outcome.result) for answer in outcome.result.answers}
        for difference in outcome.differences[: 10 * _MAX_LOG_FRAMES]:
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
        message = image_message(encoded, "jpeg", answer.detections.camera, stamp)
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


#: GitHub refuses comments above 65536 characters.
_LIMIT = 60_000
_SHOWN = 100


def markdown(outcome: Outcome, *, folded: bool = True) -> str:
    """Return the comment of a pull request: the outcome first, details folded, long lists cut.

    Args:
        outcome: the replay and its comparison.
        folded: False for a terminal, which has no foldable sections.
    """
    result = outcome.result
    parts = [f"### avq replay: {outcome.headline}"]
    parts.append(
        f"`{_base(result.log)}` ({result.log_digest[:12]}), bundle `{result.bundle_digest[:12]}`"
        + (f" against {outcome.reference_name}" if outcome.reference_name else "")
    )
    if outcome.reasons:
        parts.append("\n".join(f"- {reason}" for reason in outcome.reasons))
    if outcome.verdict is not None:
        changes = outcome.verdict.changes()
        parts.append(_table([{name.replace("_", " "): _plain(value) for name, value in changes.items()}]))
        parts.append(f"Compared: {outcome.verdict.tier}; {outcome.verdict.why}.")
        if outcome.differences:
            cells = metric_rows(outcome.verdict.metric.rows())
            parts.append(_part(folded, "By class and size, boxes with score >= 0.5", _table(cells)))
            rows = [difference_row(d, result.labels) for d in outcome.differences[:_SHOWN]]
            title = f"{len(outcome.differences)} differences" + (
                f", the first {_SHOWN}" if len(outcome.differences) > _SHOWN else ""
            )
            parts.append(_part(folded, title, _table(rows)))
    stages = outcome.paired.rows() if outcome.paired is not None else table_of(result).rows()
    parts.append(_part(folded, "Stage times on this machine, ms", _table(stages)))
    text = "\n\n".join(parts) + "\n"
    return text if len(text) <= _LIMIT else text[: text.rfind("\n", 0, _LIMIT)] + "\n\n(cut)\n</details>\n"


def _base(log: str) -> str:
    return log.rstrip("/").rsplit("/", 1)[-1] if "://" not in log else log


def _part(folded: bool, title: str, body: str) -> str:
    if not folded:
        return f"{title}\n\n{body}"
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return "none"
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return str(_plain(value)).replace("|", "\\|").replace("\n", " ")


def _plain(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else ("" if value is None else value)


PAGE, COMMENT, BOTH = "report.html", "diff.md", "both.mcap"
#: Small enough to attach to an issue and to open on a phone.
LIMIT_BYTES = 3_000_000
_MAX_FRAMES = 10


def write_report(outcome: Outcome, folder: Path, host: PluginHost) -> dict[str, Path]:
    """Write the report into ``folder`` and return its files, by kind.

    Raises:
        DataError: the folder cannot be created, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be created", seen=str(error), fix="choose another --report"
        ) from None
    log = open_log(outcome.result.log, host.sources())
    shown = shown_pairs(outcome, _MAX_FRAMES)
    pictures = read_pictures(log, {pair.key for pair in shown})
    text = replay_page(outcome, shown, pictures)
    while len(text.encode()) > LIMIT_BYTES and shown:
        shown = shown[: len(shown) // 2]
        text = replay_page(outcome, shown, pictures)
    files = {"page": folder / PAGE, "comment": folder / COMMENT}
    atomic_write(files["page"], text)
    atomic_write(files["comment"], markdown(outcome))
    if outcome.verdict is not None:
        files["both"] = folder / BOTH
        write_comparison_log(files["both"], outcome, pictures)
    return files
