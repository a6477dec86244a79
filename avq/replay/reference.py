"""References: an accepted replay in an MCAP file that holds its own content address.

The address is the SHA-256 of everything that a replay reproduces; times measured on the machine are not part of it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from avq.atomic_file import atomic_write_path
from avq.daemon.inbox import FrameCounts
from avq.errors import DataError, RequestError
from avq.recording import LogReader, LogWriter, Record
from avq.replay.differences import Tolerances
from avq.replay.result import Answer, ReplayResult
from avq.replay.timing import Timing
from avq.types import Detections, Published, StageTimes

FORMAT = "avq replay reference 1"
_TOPIC = "/avq/replay"
_SCHEMA = {"title": "avq.ReplayFrame", "type": "object", "properties": {"camera": {"type": "string"}}}


class _Frame(msgspec.Struct, forbid_unknown_fields=True):
    """One frame; arrays as base64 of little-endian bytes, which preserves NaN and every bit."""

    camera: str
    seq: int
    t_capture_ns: int
    boxes: str
    scores: str
    class_ids: str
    age_ns: int
    dropped_since_last: int
    late: bool
    mode: str
    bundle: str
    virtual_ns: list[int]
    measured_ns: list[int]


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """A replay without its frames."""

    log: str
    log_digest: str
    bundle_digest: str
    config_digest: str
    machine: str
    labels: list[str]
    events: list[dict[str, Any]]
    captured: int
    published: int
    dropped: dict[str, int]
    modes: list[str]
    misses: int
    timing: Timing
    timing_remark: str
    benches: dict[str, dict[str, Any]]
    remark: str
    start_unix_ns: int
    tolerances: Tolerances


class Reference(msgspec.Struct, frozen=True):
    """A reference: the replay, the tolerances learned with it, and its address."""

    result: ReplayResult
    tolerances: Tolerances
    address: str


def address_of(result: ReplayResult, tolerances: Tolerances) -> str:
    """Return the SHA-256 over digests, timing plan, decisions, boxes and tolerances."""
    content = [FORMAT, result.sha256, result.decisions_sha256, _head(result, tolerances)]
    content += [answer.virtual.items() for answer in result.answers]
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def require_acceptable() -> None:
    """Raise RequestError in CI: a machine must not accept its own changes."""
    if os.environ.get("CI", "").strip().lower() not in ("", "0", "false", "no"):
        raise RequestError(
            "references are not accepted in CI",
            seen=f"CI={os.environ['CI']}",
            fix="check the differences, and accept them on your own machine with --accept",
        )


def write_reference(path: Path, result: ReplayResult, tolerances: Tolerances) -> str:
    """Write a reference atomically and return its address. Raises DataError when it cannot be written."""
    address = address_of(result, tolerances)
    head = msgspec.json.encode(_head(result, tolerances), order="sorted").decode()
    with suppress(OSError):  # the writer below reports it
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write_path(path) as temporary:
        log = LogWriter(temporary, {"format": FORMAT, "address": address, "head": head}, temporary=True)
        for answer in result.answers:
            seen = answer.detections
            at_ns = result.start_unix_ns + seen.t_capture_ns
            log.write(
                _TOPIC,
                _SCHEMA,
                msgspec.to_builtins(_frame(answer)),
                log_time_ns=at_ns + answer.published.age_ns,
                publish_time_ns=at_ns,
                sequence=seen.seq,
            )
        log.close()
    return address


def read_reference(path: Path) -> Reference:
    """Read the reference at ``path``. Raises DataError when it is missing, of another kind, damaged or edited."""
    if not path.is_file():
        raise DataError(
            f"there is no reference at {path}",
            seen="a folder" if path.is_dir() else "no file",
            fix="accept the current result as the reference: add --accept",
        )
    with LogReader(path) as log:
        records = [record for record in log if record.topic == _TOPIC]
        metadata: Mapping[str, str] = log.metadata.get("avq", {})
        damage = log.damage
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path} is not a reference of avq replay",
            seen=metadata.get("format", "an MCAP file of another kind"),
            fix="use a file that avq replay --accept wrote",
        )
    try:
        head = msgspec.json.decode(metadata.get("head", ""), type=_Head)
        answers = tuple(_answer(record) for record in records)
    except (ValueError, msgspec.MsgspecError) as error:
        raise _damaged(path, str(error)) from None
    result = _result(head, answers)
    if damage or address_of(result, head.tolerances) != metadata.get("address"):
        raise _damaged(path, damage or "its content does not match its address")
    return Reference(result, head.tolerances, metadata["address"])


def _damaged(path: Path, seen: str) -> DataError:
    return DataError(
        f"the reference {path} is damaged or was edited",
        seen=seen,
        fix="restore it, or accept a new one with --accept",
    )


def _head(result: ReplayResult, tolerances: Tolerances) -> _Head:
    return _Head(
        result.log,
        result.log_digest,
        result.bundle_digest,
        result.config_digest,
        result.machine,
        list(result.labels),
        [dict(event) for event in result.events],
        result.account.captured,
        result.account.published,
        dict(result.account.dropped),
        list(result.modes),
        result.misses,
        result.timing,
        result.timing_remark,
        {digest: dict(bench) for digest, bench in result.benches.items()},
        result.remark,
        result.start_unix_ns,
        tolerances,
    )


def _result(head: _Head, answers: tuple[Answer, ...]) -> ReplayResult:
    return ReplayResult(
        log=head.log,
        log_digest=head.log_digest,
        bundle_digest=head.bundle_digest,
        config_digest=head.config_digest,
        machine=head.machine,
        labels=tuple(head.labels),
        answers=answers,
        events=tuple(head.events),
        account=FrameCounts(head.captured, head.published, head.dropped, 0),
        modes=tuple(head.modes),
        misses=head.misses,
        timing=head.timing,
        timing_remark=head.timing_remark,
        seconds=0.0,
        engine_seconds=0.0,
        benches=head.benches,
        remark=head.remark,
        start_unix_ns=head.start_unix_ns,
    )


def _frame(answer: Answer) -> _Frame:
    seen, out = answer.detections, answer.published
    return _Frame(
        seen.camera,
        seen.seq,
        seen.t_capture_ns,
        _text(seen.boxes_xyxy_px, "<f4"),
        _text(seen.scores, "<f4"),
        _text(seen.class_ids, "<i8"),
        out.age_ns,
        out.dropped_since_last,
        out.late,
        out.mode,
        out.bundle_digest,
        [ns for _, ns in answer.virtual.items()],
        [ns for _, ns in answer.measured.items()],
    )


def _answer(record: Record) -> Answer:
    row = msgspec.json.decode(record.data, type=_Frame)
    seen = Detections(
        _array(row.boxes, "<f4").reshape(-1, 4),
        _array(row.scores, "<f4"),
        _array(row.class_ids, "<i8"),
        row.camera,
        row.seq,
        row.t_capture_ns,
    )
    out = Published(seen, row.age_ns, row.dropped_since_last, row.late, row.mode, row.bundle)
    if len(row.virtual_ns) != 4 or len(row.measured_ns) != 4:
        raise ValueError("a frame does not have four stage times")
    return Answer(out, StageTimes(*row.virtual_ns), StageTimes(*row.measured_ns))


def _text(array: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, kind).tobytes()).decode()


def _array(text: str, kind: str) -> Any:
    return np.frombuffer(base64.b64decode(text, validate=True), kind).astype(kind[1:])
