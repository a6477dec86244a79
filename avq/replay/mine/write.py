"""Chosen frames as a set that ``avq build --data`` takes: pictures, index.csv, and boxes to start labelling from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from avq.atomic_file import write_whole
from avq.errors import DataError
from avq.replay.frames import FrameKey
from avq.replay.mine.choose import Ranked
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
    """Add the frames to the set in ``folder``; returns how many were not there already.

    The index is written last and by one rename: a set that was interrupted is the set from before.

    Raises DataError when the folder holds other things than a set, or cannot be written.
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
            write_whole(folder / name, data)
            rows.append(_row(name, digest, row, log_digests[row.frame.log], licence))
            images.append({"file_name": name, "width": picture.shape[1], "height": picture.shape[0]})
            boxes.append((name, row))
    _write_proposals(folder / PROPOSALS, images, boxes)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / INDEX, text.getvalue())
    return len(images)


def _row(name: str, digest: str, row: Ranked, log_digest: str, licence: str) -> dict[str, str]:
    camera, seq = row.frame.key
    told = ", ".join(f"{key} {value:.4g}" for key, value in sorted(row.frame.signals.items()))
    return {
        "file": name,
        "sha256": digest,
        "scene": f"{row.frame.log.rsplit('/', 1)[-1]}, camera {camera}, frame {seq}",
        "source": f"mined by avq from the log {log_digest[:16]}: {told}",
        "licence": licence,
    }


def _existing(folder: Path) -> list[dict[str, str]]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = sorted(entry.name for entry in folder.iterdir())
        if INDEX not in entries:
            if entries:
                raise DataError(
                    f"{folder} is not empty, and no set",
                    seen=", ".join(entries[:4]),
                    fix="name a new folder, or one with an index.csv to add to",
                )
            return []
        with (folder / INDEX).open(encoding="utf-8-sig", newline="") as file:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{folder} cannot be used for a set", seen=str(error), fix="name a new folder"
        ) from None
    if rows and not {"file", "sha256"} <= rows[0].keys():
        raise DataError(
            f"{folder / INDEX} is no index of a set", seen=", ".join(rows[0]), fix="name a new folder"
        )
    return rows


def _write_proposals(
    path: Path, images: Sequence[Mapping[str, Any]], boxes: Sequence[tuple[str, Ranked]]
) -> None:
    """COCO json of what the better model saw, added to what is there: a start for who labels, not truth."""
    table: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    if path.is_file():
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is damaged", seen=str(error), fix="remove it") from None
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
    write_whole(path, json.dumps(table))
