"""What the model's classes are called: asked for, told by the model, COCO's, or numbered."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

from avq.errors import RequestError
from avq.types import GraphView

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,"
    "handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,"
    "broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,"
    "mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
COCO_80: tuple[str, ...] = tuple(_COCO.split(","))
_PRESETS: Mapping[str, tuple[str, ...]] = {"coco": COCO_80}
_UNTOLD = 91  # COCO's category numbers end at 90; enough names for heads that do not tell how many there are


def class_names(graph: GraphView, count: int, asked: str | None) -> tuple[tuple[str, ...], list[str]]:
    """The names, index by index, and messages that say where they come from.

    Args:
        graph: its metadata may carry names.
        count: classes the head scores; 0 where the head does not tell.
        asked: ``--classes``: a text file with one name a line, or "coco".

    Raises:
        RequestError: no such file, or not as many names as classes.
    """
    if asked is not None:
        names = _asked(asked)
        _check(names, count, f"--classes {asked}")
        return names, [f"{len(names)} class names from {asked}"]
    told = metadata_names(graph)
    if told and count in (0, len(told)):
        return told, [f"{len(told)} class names from the model's metadata"]
    lost = (
        [f"the model's metadata names {len(told)} classes, the head scores {count}: ignored"] if told else []
    )
    if count == len(COCO_80):
        return COCO_80, [*lost, "80 classes: taken as COCO's (--classes overrides)"]
    if count == 0:
        return numbered(_UNTOLD), [
            *lost,
            "neither head nor metadata tell the classes: numbered (--classes names)",
        ]
    return numbered(count), [
        *lost,
        f"{count} classes without names: class0 to class{count - 1} (--classes names)",
    ]


def numbered(count: int) -> tuple[str, ...]:
    return tuple(f"class{index}" for index in range(count))


def metadata_names(graph: GraphView) -> tuple[str, ...]:
    """Names in the metadata key "names": a JSON list or object, or a Python dict as Ultralytics writes it."""
    text = graph.metadata.get("names", "").strip()
    if not text:
        return ()
    value = _parsed(text)
    if isinstance(value, dict):
        try:
            value = [value[key] for key in sorted(value, key=int)]
        except (TypeError, ValueError):
            return ()
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _parsed(text: str) -> object:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return [name.strip() for name in text.split(",")]


def _asked(asked: str) -> tuple[str, ...]:
    if asked in _PRESETS:
        return _PRESETS[asked]
    try:
        lines = Path(asked).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--classes {asked} cannot be read",
            seen=error.strerror or type(error).__name__ if isinstance(error, OSError) else "not UTF-8 text",
            fix="give a text file with one class name a line, or 'coco'",
        ) from None
    return tuple(line.strip() for line in lines if line.strip())


def _check(names: tuple[str, ...], count: int, where: str) -> None:
    if count and len(names) != count:
        raise RequestError(
            f"{where} does not fit the model",
            seen=f"{len(names)} names, the head scores {count} classes",
            fix=f"give {count} names, one a line, in the order of the model's classes",
        )
