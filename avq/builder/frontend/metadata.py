"""Facts from a model's metadata and first nodes: input size, number range and class names."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from avq.builder.graph.edit import dims
from avq.errors import ModelError, RequestError
from avq.types import GraphView

PREPROCESS_KEY = "avq.preprocess"


def has_open_size(model: onnx.ModelProto) -> bool:
    """Whether the picture input leaves its height or width open."""
    weights = {tensor.name for tensor in model.graph.initializer}
    pictures = [dims(i) for i in model.graph.input if i.name not in weights and len(dims(i)) == 4]
    return any((-1 in shape[2:] and shape[3] != 3) or shape[1:3] == [-1, -1] for shape in pictures)


def declared_size_px(model: onnx.ModelProto, preprocess: str | None) -> tuple[int, int] | None:
    """(width, height) from the --preprocess file, avq's metadata or Ultralytics' imgsz; None without them."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    file = _object(_text(preprocess)) if preprocess else {}
    for table in (file, _object(metadata.get(PREPROCESS_KEY, ""))):
        width, height = table.get("width_px"), table.get("height_px")
        if isinstance(width, int) and isinstance(height, int):
            return width, height
    return _image_size(metadata.get("imgsz", ""))


def size_only_px(preprocess: str) -> tuple[int, int] | None:
    """(width, height) of a --preprocess file with these two keys only; the rest is then detected."""
    table = _object(_text(preprocess))
    if set(table) != {"width_px", "height_px"}:
        return None
    return table["width_px"], table["height_px"]  # type: ignore[return-value]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # the name of a preset, or an error reported when the spec is read


def _object(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _image_size(text: str) -> tuple[int, int] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    pair = [value, value] if isinstance(value, int) else value
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        return None
    return pair[1], pair[0]


def is_ultralytics(graph: GraphView) -> bool:
    """Whether Ultralytics exported the model: its metadata has stride, imgsz and names."""
    return {"stride", "imgsz", "names"} <= set(graph.metadata)


def expected_input_max(graph: GraphView) -> float | None:
    """Likely largest input value, 255.0 or 1.0, of a graph that normalises pictures itself; None for others.

    Follows Cast, Sub, Div, Mul and Add by constants between the input and the first layer.
    """
    tensor, gain, shift, normalises = graph.inputs[0].name, 1.0, 0.0, False
    while True:
        readers = graph.consumers(tensor)
        if len(readers) != 1:
            break
        node, index = readers[0]
        if node.op in ("Cast", "Transpose", "Squeeze", "Unsqueeze"):
            tensor = node.outputs[0]
            continue
        other = graph.constants.get(node.inputs[1 - index]) if len(node.inputs) == 2 else None
        if node.op not in ("Add", "Sub", "Mul", "Div") or other is None or other.size not in (1, 3):
            break
        step = float(np.mean(other.astype(np.float64)))
        gain, shift = _applied(node.op, gain, shift, step, index)
        tensor, normalises = node.outputs[0], True
    if not normalises or gain == 0:
        return None
    return 255.0 if abs(gain) < 0.2 else 1.0


def _applied(op: str, gain: float, shift: float, step: float, index: int) -> tuple[float, float]:
    if op == "Mul":
        return gain * step, shift * step
    if op == "Div":
        return (gain / step, shift / step) if index == 0 and step else (gain, shift)
    if op == "Sub":
        return (gain, shift - step) if index == 0 else (-gain, step - shift)
    return gain, shift + step


# Class names: from the flag, the metadata, COCO, or numbered.

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
_BACKGROUND = frozenset({"background", "bg"})
_UNKNOWN_COUNT = 91  # COCO's category ids end at 90: enough names where the number of classes is unknown


def class_names(graph: GraphView, count: int, flag: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Class names by index, and messages on their origin.

    Args:
        graph: its metadata may contain names.
        count: classes that the head scores; 0 where it is unknown.
        flag: ``--classes``: a text file with one name a line, or "coco"; None without it.

    Returns:
        The names, and messages for the user.

    Raises:
        RequestError: the file cannot be read, or it has not as many names as classes.
        ModelError: the metadata names another number of classes than the head scores.
    """
    if flag is not None:
        names = _names_of_flag(flag)
        _check(names, count, f"--classes {flag}")
        return names, [f"{len(names)} class names from {flag}"]
    listed = metadata_names(graph)
    if listed and count and len(listed) == count + 1 and listed[0].strip("_ ").lower() in _BACKGROUND:
        listed = listed[1:]
    if listed and count not in (0, len(listed)):
        raise ModelError(
            "the model's metadata contradicts the recognised head",
            seen=f"{len(listed)} class names ({', '.join(listed[:5])}), {count} columns of class scores",
            fix=f"if the head is right, give its {count} names with --classes FILE, one a line; "
            "if not, name it with --decoder NAME, or leave the outputs undecoded with --decoder none",
        )
    if listed:
        return listed, [f"{len(listed)} class names from the model's metadata"]
    if count == len(COCO_80):
        return COCO_80, ["80 classes: COCO names assumed (--classes overrides)"]
    if count == 0:
        return numbered(_UNKNOWN_COUNT), [
            "the number of classes is unknown: names are class0, class1, ... (set them with --classes)"
        ]
    return numbered(count), [
        f"{count} classes without names: class0 to class{count - 1} (set them with --classes)"
    ]


#: Tasks of Ultralytics' exporter whose heads hold more than upright boxes.
_OTHER_TASKS = {
    "pose": "keypoints",
    "segment": "masks",
    "obb": "rotated boxes",
    "classify": "classes of whole pictures",
}


def require_detection(graph: GraphView, family: str, *, reads_keypoints: bool) -> None:
    """Check that the task of the metadata is one whose boxes the recognised head gives.

    Args:
        graph: its metadata may hold "task" and "kpt_shape".
        family: the recognised head.
        reads_keypoints: whether the head knows of the keypoints and leaves them out.

    Raises:
        ModelError: the metadata names another task.
    """
    task = graph.metadata.get("task", "").strip().lower()
    if not task and graph.metadata.get("kpt_shape", "").strip():
        task = "pose"
    if task not in _OTHER_TASKS or (task == "pose" and reads_keypoints):
        return
    raise ModelError(
        "the model's metadata contradicts the recognised head",
        seen=f"task '{task}' ({_OTHER_TASKS[task]}), recognised as {family}, a head of upright boxes",
        fix="export it for detection; or name the head with --decoder NAME if its boxes are what you need",
    )


def numbered(count: int) -> tuple[str, ...]:
    """Names class0, class1, ..."""
    return tuple(f"class{index}" for index in range(count))


def metadata_names(graph: GraphView) -> tuple[str, ...]:
    """Names in the metadata: key "names" (JSON, or a Python dict as Ultralytics writes it) or "character" (lines)."""
    text = graph.metadata.get("names", "").strip()
    if not text:
        lines = graph.metadata.get("character", "").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
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


def _names_of_flag(flag: str) -> tuple[str, ...]:
    if flag in _PRESETS:
        return _PRESETS[flag]
    try:
        lines = Path(flag).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--classes {flag} cannot be read",
            seen=error.strerror or type(error).__name__ if isinstance(error, OSError) else "not UTF-8 text",
            fix="give a text file with one class name a line, or 'coco'",
        ) from None
    return tuple(line.strip() for line in lines if line.strip())


def _check(names: tuple[str, ...], count: int, where: str) -> None:
    if count and len(names) != count:
        raise RequestError(
            f"{where} has the wrong number of names",
            seen=f"{len(names)} names, the head scores {count} classes",
            fix=f"give {count} names, one a line, in the order of the model's classes",
        )
