"""``avq replay --mine``: rank the frames of all logs by disagreement, and write the first ones as a set.

The set is input of ``avq build --data``: pictures, index.csv, and proposed boxes as a start for labelling.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import cv2
import numpy as np

from avq.atomic_file import atomic_write
from avq.compare import DifferenceJson
from avq.errors import DataError, RequestError
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.log import FrameKey, read_pictures
from avq.replay.log_sources import open_log
from avq.replay.mining_rank import SIGNALS, MineJob, Ranked, ScoredLog, choose, rank, score_log
from avq.replay.outcome import ReplayTotals
from avq.types import U8

COLUMNS = ("file", "sha256", "scene", "source", "licence")
INDEX, PROPOSALS = "index.csv", "proposals.json"


def write_set(
    folder: Path,
    chosen: Sequence[Ranked],
    pixels: Mapping[tuple[str, FrameKey], U8],
    log_digests: Mapping[str, str],
    licence: str,
) -> int:
    """Add frames to the set in ``folder``.

    The index is written last and atomically: an interrupted call leaves the previous set.

    Args:
        folder: a new folder, or one with an index.csv.
        chosen: frames to add.
        pixels: (log, frame key) -> (H, W, 3) uint8 BGR.
        log_digests: log -> SHA-256.
        licence: licence of the pictures.

    Returns:
        The number of frames that were not in the set already.

    Raises:
        DataError: the folder holds other files than a set, or cannot be written.
    """
    rows = _existing(folder)
    known = {row["sha256"] for row in rows}
    images: list[dict[str, Any]] = []
    boxes: list[tuple[str, Ranked]] = []
    for row in chosen:
        picture = pixels.get((row.frame.log, row.frame.key))
        if picture is None:
            continue
        data = np.asarray(cv2.imencode(".png", picture)[1]).tobytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"mined_{digest[:16]}.png"
        if digest not in known:
            known.add(digest)
            atomic_write(folder / name, data)
            rows.append(_row(name, digest, row, log_digests[row.frame.log], licence))
            images.append({"file_name": name, "width": picture.shape[1], "height": picture.shape[0]})
            boxes.append((name, row))
    _write_proposals(folder / PROPOSALS, images, boxes)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folder / INDEX, text.getvalue())
    return len(images)


def _row(name: str, digest: str, row: Ranked, log_digest: str, licence: str) -> dict[str, str]:
    camera, seq = row.frame.key
    signals = ", ".join(f"{key} {value:.4g}" for key, value in sorted(row.frame.signals.items()))
    return {
        "file": name,
        "sha256": digest,
        "scene": f"{row.frame.log.rsplit('/', 1)[-1]}, camera {camera}, frame {seq}",
        "source": f"mined by avq from the log {log_digest[:16]}: {signals}",
        "licence": licence,
    }


def _existing(folder: Path) -> list[dict[str, str]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(entry.name for entry in folder.iterdir())
        if INDEX not in entries:
            if entries:
                raise DataError(
                    f"the folder {folder} is not empty and has no index.csv",
                    seen=", ".join(entries[:4]),
                    fix="name a new folder, or one with an index.csv to add to",
                )
            return []
        with (folder / INDEX).open(encoding="utf-8-sig", newline="") as file:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the set in {folder} cannot be read or created", seen=str(error), fix="name a new folder"
        ) from None
    if rows and not {"file", "sha256"} <= rows[0].keys():
        raise DataError(
            f"{folder / INDEX} has no columns file and sha256",
            seen=", ".join(rows[0]),
            fix="name a new folder",
        )
    return rows


def _write_proposals(
    path: Path, images: Sequence[Mapping[str, Any]], boxes: Sequence[tuple[str, Ranked]]
) -> None:
    """Add the boxes of the better model to a COCO file: proposals for labelling, not ground truth."""
    table: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    if path.is_file():
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged", seen=str(error), fix="remove the file") from None
    ids = {category["name"]: category["id"] for category in table["categories"]}
    first = len(table["images"])
    image_ids = {}
    for number, image in enumerate(images, start=first + 1):
        table["images"].append({"id": number, **image})
        image_ids[image["file_name"]] = number
    for name, row in boxes:
        for label, score, (x0, y0, x1, y1) in row.frame.proposals:
            ids.setdefault(label, len(ids) + 1)
            size = [round(x1 - x0, 2), round(y1 - y0, 2)]
            table["annotations"].append(
                {
                    "id": len(table["annotations"]) + 1,
                    "image_id": image_ids[name],
                    "category_id": ids[label],
                    "bbox": [x0, y0, *size],
                    "area": round(size[0] * size[1], 2),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    table["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
    atomic_write(path, json.dumps(table))


GAP_S = 0.5
_SHOWN = 20


class MinedFrame(TypedDict):
    """One mined frame; every signal that it has is a key too, with its strength."""

    log: str
    camera: str
    frame: int
    score: float
    why: str


class MiningJson(ReplayTotals):
    """Object of ``avq replay --mine DIR --json``; nothing is compared, so ``differences`` is empty."""

    differences: list[DifferenceJson]
    mined: list[MinedFrame]
    added: int
    signals: list[str]
    set: str


@dataclass(frozen=True)
class Mined:
    """Result of ``avq replay --mine``.

    Attributes:
        scored: per log, in the order of the request.
        chosen: frames of the set, strongest signal first.
        folder: folder of the set.
        added: number of frames that were new to the set.
    """

    scored: tuple[ScoredLog, ...]
    chosen: tuple[Ranked, ...]
    folder: Path
    added: int

    passed = True

    @property
    def frames(self) -> int:
        return sum(len(log.frames) for log in self.scored)

    def summary(self) -> MiningJson:
        """Return the object of ``avq replay --mine DIR --json``."""
        digests = [log.sha256 for log in self.scored]
        combined = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return {
            "frames": self.frames,
            "identical": None,
            "differences": [],
            "sha256": digests[0] if len(digests) == 1 else combined,
            "seconds": sum(log.seconds for log in self.scored),
            "mined": [self._row(row) for row in self.chosen],
            "added": self.added,
            "signals": sorted(
                {name for log in self.scored for frame in log.frames for name in frame.signals}
            ),
            "set": str(self.folder),
        }

    def _row(self, row: Ranked) -> MinedFrame:
        camera, seq = row.frame.key
        signals = {name: round(row.frame.signals[name], 4) for name in SIGNALS if name in row.frame.signals}
        answer: MinedFrame = {
            "log": row.frame.log,
            "camera": camera,
            "frame": seq,
            "score": round(row.score, 4),
            "why": row.why,
        }
        return cast("MinedFrame", {**answer, **signals})

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        shown = [{**self._row(row), "log": row.frame.log.rsplit("/", 1)[-1]} for row in self.chosen[:_SHOWN]]
        return [(f"Frames with the strongest signals, {len(self.chosen)} of {self.frames}", shown)]

    def footer(self) -> list[str]:
        signals = ", ".join(
            f"{name} {count}" for name, count in Counter(r.why for r in self.chosen).most_common()
        )
        return [
            f"{self.added} new pictures: {self.folder} ({signals or 'no frame has a signal'})",
            f"  next: avq build MODEL --data {self.folder} ..., together with the previous pictures",
        ]


def mine(
    *,
    logs: Sequence[str],
    bundle: Path,
    other: Path | None,
    folder: Path,
    count: int,
    licence: str,
    frames: int | None,
    pool: WorkerPool,
    host: PluginHost,
    report: Reporter,
) -> Mined:
    """Rank the frames of all logs together and add the first ``count`` to the set in ``folder``.

    Args:
        logs: paths or URIs.
        bundle: the bundle to improve.
        other: the bundle to compare with; None uses the float network of ``bundle`` itself.
        folder: folder of the set.
        count: number of frames.
        licence: licence of the pictures.
        frames: replay so many frames per log; None replays all.
        pool: runs the replays.
        host: plugins.
        report: progress.

    Raises:
        RequestError: no signal to rank frames by exists.
        DataError: a log or the folder cannot be used.
    """
    jobs = [MineJob(log, bundle.resolve(), other and other.resolve(), frames) for log in logs]
    scored = tuple(report.track(pool.map(score_log, jobs), "logs", len(jobs)))
    all_frames = [frame for log in scored for frame in log.frames]
    if not any(frame.signals for frame in all_frames):
        raise RequestError(
            "there is no signal to rank frames by",
            seen=f"{bundle} is a float bundle without a drift probe, and the logs hold no boxes of another",
            fix="give --baseline BUNDLE, or mine with a quantized bundle or one with a drift probe",
        )
    chosen = choose(rank(all_frames), count, int(GAP_S * 1e9))
    digests = {job.log: log.log_sha256 for job, log in zip(jobs, scored, strict=True)}
    added = write_set(folder, chosen, _pixels(chosen, host), digests, licence)
    return Mined(scored, tuple(chosen), folder, added)


def _pixels(chosen: Sequence[Ranked], host: PluginHost) -> dict[tuple[str, FrameKey], U8]:
    pixels: dict[tuple[str, FrameKey], U8] = {}
    for log in dict.fromkeys(row.frame.log for row in chosen):
        keys = {row.frame.key for row in chosen if row.frame.log == log}
        pictures = read_pictures(open_log(log, host.sources()), keys)
        pixels |= {(log, key): picture for key, picture in pictures.items()}
    return pixels


__all__ = ["mine"]
