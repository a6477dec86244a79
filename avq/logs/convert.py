"""Convert rosbag2 folders to MCAP files and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from avq.errors import RequestError, nearest
from avq.logs.blur import BlurSummary, make_blur
from avq.logs.cut import Change, rewrite, survey
from avq.logs.reading import Log, open_log
from avq.logs.ros import Ros2Messages, Rosbag2Output, standard_definition
from avq.logs.writing import new_output
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.recording import Record

STORAGES = ("mcap", "sqlite3")


class ConvertResult(TypedDict, total=False):
    """Keys of ``avq log convert --json``; ``blur`` with ``--blur`` only."""

    output: str
    kind: str
    messages: int
    of: int
    left_out: dict[str, int]
    damage: str
    blur: BlurSummary


def convert(
    path: Path,
    output: Path,
    *,
    host: PluginHost,
    report: Reporter,
    storage: str = "mcap",
    blurred: bool = False,
    bundle: Path | None = None,
    blur_classes: Sequence[str] = (),
) -> ConvertResult:
    """Write ``path`` as an MCAP file (an output named .mcap) or as a rosbag2 folder (any other name).

    ROS 2 messages are copied unchanged. For rosbag2, avq's images become sensor_msgs, its boxes vision_msgs, and
    other JSON std_msgs/String; messages without a ROS 2 form are left out and listed.

    Raises:
        RequestError: the storage is unknown, or no message has a ROS 2 form.
        DataError: the log cannot be read, or the output cannot be written.
        MachineError: the conversion needs rosbags, which is not installed.
    """
    if storage not in STORAGES:
        raise RequestError(f"rosbag2 has no storage '{storage}'", fix=nearest(storage, STORAGES))
    new_output(output, path)
    total = survey(path).messages
    with (
        make_blur(path, blurred, bundle, blur_classes, host) as blur,
        closing(open_log(path)) as log,
    ):

        def change(record: Record) -> Record | None:
            return blur(record) if blur else record

        if output.suffix == ".mcap":
            definitions = _Definitions()
            written = rewrite(
                log,
                output,
                lambda r: definitions.complete(change(r)),
                report,
                total,
                attachments=blur is None,
            )
            left_out: Counter[str] = Counter()
        else:
            written, left_out = _to_rosbag2(log, output, storage, change, report, total)
        result: ConvertResult = {
            "output": str(output),
            "kind": "mcap" if output.suffix == ".mcap" else f"rosbag2 ({storage})",
            "messages": written,
            "of": total,
            "left_out": dict(left_out),
            "damage": log.damage,
        }
        if blur:
            result["blur"] = blur.summary()
        return result


class _Definitions:
    """Add the definitions of standard ROS 2 types that old recorders did not write."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def complete(self, record: Record | None) -> Record | None:
        if record is None or record.schema_data or record.message_encoding != "cdr" or not record.schema_name:
            return record
        if record.schema_name not in self._known:
            self._known[record.schema_name] = standard_definition(record.schema_name)
        return replace(record, schema_encoding="ros2msg", schema_data=self._known[record.schema_name])


def _to_rosbag2(
    log: Log, output: Path, storage: str, change: Change, report: Reporter, total: int
) -> tuple[int, Counter[str]]:
    left_out: Counter[str] = Counter()
    messages = Ros2Messages()
    with Rosbag2Output(output, storage) as out:
        for record in report.track(log, "messages", total):
            kept = change(record)
            if kept is None:
                continue
            message = messages.convert(kept)
            if message is None:
                left_out[f"{kept.topic} ({kept.schema_name or 'no schema'}, {kept.message_encoding})"] += 1
            else:
                out.write(message)
        if not out.messages:
            raise RequestError(
                f"no message of {log.path} has a ROS 2 form",
                seen=", ".join(left_out),
                fix="convert to MCAP: -o NAME.mcap",
            )
    if log.damage:
        report.warning(f"{log.path} is damaged, the readable part was written: {log.damage}")
    return out.messages, left_out
