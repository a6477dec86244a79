"""What an exporter wrote beside the graph, and what the graph's first nodes say of the picture it wants."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from avq.builder.graph.inputs import dims
from avq.types import GraphView

PREPROCESS_KEY = "avq.preprocess"


def wants_size(model: onnx.ModelProto) -> bool:
    """Whether the picture input leaves its height or width open."""
    weights = {tensor.name for tensor in model.graph.initializer}
    pictures = [dims(i) for i in model.graph.input if i.name not in weights and len(dims(i)) == 4]
    return any((-1 in shape[2:] and shape[3] != 3) or shape[1:3] == [-1, -1] for shape in pictures)


def told_size_px(model: onnx.ModelProto, preprocess: str | None) -> tuple[int, int] | None:
    """(width, height) from a --preprocess file, avq's own metadata or Ultralytics' imgsz."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    file = _object(_text(preprocess)) if preprocess else {}
    for table in (file, _object(metadata.get(PREPROCESS_KEY, ""))):
        width, height = table.get("width_px"), table.get("height_px")
        if isinstance(width, int) and isinstance(height, int):
            return width, height
    return _image_size(metadata.get("imgsz", ""))


def only_size_px(preprocess: str) -> tuple[int, int] | None:
    """(width, height) of a --preprocess file that says nothing else: the rest is found as without it."""
    table = _object(_text(preprocess))
    if set(table) != {"width_px", "height_px"}:
        return None
    return table["width_px"], table["height_px"]  # type: ignore[return-value]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # a preset's name, or reported when the spec is read


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
    """Ultralytics' exporter writes stride, task, imgsz and names, and always prepares pictures alike."""
    return {"stride", "imgsz", "names"} <= set(graph.metadata)


def normalises_inside(graph: GraphView) -> float | None:
    """The input range that the graph's own first arithmetic expects: 255.0 or 1.0; None when it does none.

    The chain of Cast, Sub, Div, Mul and Add by constants between the input and the first layer is followed.
    """
    tensor, gain, shift, found = graph.inputs[0].name, 1.0, 0.0, False
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
        tensor, found = node.outputs[0], True
    if not found or gain == 0:
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
