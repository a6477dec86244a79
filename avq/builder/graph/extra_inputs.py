"""Bind the inputs beside the picture: sizes and scales of the picture, padding masks, inputs that nothing reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import dims, reads, set_constant
from avq.builder.graph.fold import fold
from avq.errors import ModelError
from avq.types import AnyArray

Kind = Literal["scale", "size", "info", "mask"]

_SCALE_NAME = re.compile(r"scale|ratio")
_SIZE_NAME = re.compile(r"shape|size|(^|[^a-z])(hw|wh)([^a-z]|$)")
_INFO_NAME = re.compile(r"im(g|age)?_?info")
#: Names of published exporters whose order of the pair is known.
_HEIGHT_FIRST = re.compile(r"im(g|age)?_?(shape|size|info)|(^|[^a-z])hw([^a-z]|$)")
_WIDTH_FIRST = re.compile(r"orig(inal)?_?(target_?)?sizes?|target_?sizes?|(^|[^a-z])wh([^a-z]|$)")
#: Operators that move numbers or round them, and leave what they mean.
_MOVING = frozenset(
    {"Cast", "Gather", "Slice", "Split", "Squeeze", "Unsqueeze", "Concat", "Tile", "Expand", "Reshape"}
    | {"Identity", "Transpose", "Flatten", "Floor", "Ceil", "Round", "Add"}
)
_COMPARING = frozenset({"Mul", "Min", "Max", "Clip", "Sub", "Less", "Greater", "Where", "Resize", "Range"})
#: Two numbers that no constant of a model has: what becomes of them shows the order of the pair.
_HEIGHT, _WIDTH = 1009.0, 2003.0


def drop_unread(graph: onnx.GraphProto) -> tuple[list[str], dict[str, AnyArray]]:
    """Remove inputs that nothing reads, unless none is read; return messages and a value for each."""
    used = {name for node in graph.node for name in reads(node)} | {output.name for output in graph.output}
    unread = [value for value in graph.input if value.name not in used]
    if len(unread) == len(graph.input):
        return [], {}
    _remove(graph, {value.name for value in unread})
    messages = [f"input '{value.name}' dropped: nothing reads it" for value in unread]
    return messages, {value.name: _filled(value, 0.0) for value in unread}


def kinds_of(graph: onnx.GraphProto, picture: onnx.ValueInfoProto) -> dict[str, Kind]:
    """The kind of every input beside ``picture``, by its name, else by how the graph uses it.

    Raises:
        ModelError: an input is no size, scale or mask of the picture.
    """
    extras = [value for value in graph.input if value.name != picture.name]
    found = {value.name: _kind(graph, value) for value in extras}
    unknown = [value for value in extras if found[value.name] is None]
    if unknown:
        seen = "; ".join(f"{value.name} {dims(value)}" for value in graph.input)
        names = ", ".join(f"'{value.name}'" for value in unknown)
        raise ModelError(
            f"the model has {len(graph.input)} inputs; avq feeds one picture and cannot tell what {names} takes",
            seen=seen,
            fix="export it with one picture as its only input",
        )
    return {name: kind for name, kind in found.items() if kind is not None}


def bind(
    model: onnx.ModelProto, kinds: Mapping[str, Kind], size_px: tuple[int, int]
) -> tuple[list[str], dict[str, AnyArray]]:
    """Make every input of ``kinds`` a constant, in place: scales 1, sizes those of the network, masks all ones.

    Boxes are then in input pixels.

    Args:
        model: its picture input has a fixed size.
        kinds: of the other inputs.
        size_px: (width, height) of the network.

    Returns:
        A message and the value per input.

    Raises:
        ModelError: the order of a size, (height, width) or (width, height), cannot be found out.
    """
    width, height = size_px
    values: dict[str, AnyArray] = {}
    messages = []
    inputs = {value.name: value for value in model.graph.input}
    for name, kind in kinds.items():
        if kind in ("scale", "mask"):
            values[name] = _filled(inputs[name], 1.0)
            messages.append(f"input '{name}' bound to 1")
    for name, kind in kinds.items():
        if kind == "info":
            values[name] = _shaped(inputs[name], [height, width, 1])
            messages.append(f"input '{name}' bound to ({height}, {width}, 1)")
        elif kind == "size":
            first = width != height and _height_first(model, inputs[name], values)
            values[name] = _shaped(inputs[name], [height, width] if first else [width, height])
            order = "height, width" if first else "width, height"
            messages.append(f"input '{name}' bound to the network size {width}x{height} ({order})")
    _set(model.graph, values)
    return messages, values


def _kind(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> Kind | None:
    shape, name = dims(value), value.name.lower()
    if name.endswith("pixel_mask"):
        return "mask"
    if not 1 <= len(shape) <= 2 or (len(shape) == 2 and shape[0] not in (1, -1)):
        return None
    if shape[-1] == 3 and _INFO_NAME.search(name):
        return "info"
    if shape[-1] not in (1, 2, -1):
        return None
    scale, size = bool(_SCALE_NAME.search(name)), bool(_SIZE_NAME.search(name))
    if scale == size:
        uses = _uses(graph, value.name)
        scale, size = uses == {"scale"}, uses == {"size"}
    if scale:
        return "scale"
    return "size" if size and shape[-1] != 1 else None


def _uses(graph: onnx.GraphProto, name: str) -> set[str]:
    """How the numbers of an input are used: "scale" where others are divided by them, "size" where compared."""
    uses: set[str] = set()
    moved = {name}
    for node in graph.node:
        places = [place for place, tensor in enumerate(node.input) if tensor in moved]
        if not places:
            continue
        if node.op_type in _MOVING:
            moved.update(node.output)
        elif node.op_type == "Reciprocal" or (node.op_type == "Div" and 1 in places):
            uses.add("scale")
        elif node.op_type == "Div":
            uses.add("size")
            moved.update(node.output)
        elif node.op_type in _COMPARING:
            uses.add("size")
        else:
            uses.add("other")
    return uses


def _height_first(model: onnx.ModelProto, value: onnx.ValueInfoProto, bound: Mapping[str, AnyArray]) -> bool:
    """Whether a size is (height, width): by its name, else by the factors of x and y in the graph."""
    name = value.name.lower()
    height, width = bool(_HEIGHT_FIRST.search(name)), bool(_WIDTH_FIRST.search(name))
    if height and not width:
        return True
    trials = [_with_size(model, value, bound, pair) for pair in ((_HEIGHT, _WIDTH), (_WIDTH, _HEIGHT))]
    if trials[0].SerializeToString(deterministic=True) == trials[1].SerializeToString(deterministic=True):
        return False  # both orders give the same graph
    found = _order_in_graph(trials[0])
    if found is not None:
        return found
    if width and not height:
        return False
    raise ModelError(
        f"cannot tell whether the input '{value.name}' takes (height, width) or (width, height)",
        seen=f"{value.name} {dims(value)}, a network that is not square",
        fix="export it with one picture as its only input, or with a square size",
    )


def _with_size(
    model: onnx.ModelProto,
    value: onnx.ValueInfoProto,
    bound: Mapping[str, AnyArray],
    pair: tuple[float, float],
) -> onnx.ModelProto:
    """The folded graph with ``pair`` as the value of the input."""
    trial = onnx.ModelProto()
    trial.CopyFrom(model)
    _set(trial.graph, {**bound, value.name: _shaped(value, list(pair))})
    return fold(trial)


def _order_in_graph(trial: onnx.ModelProto) -> bool | None:
    """Whether (height, width) was bound: by the constant that x, y or x, y, x, y are compared with."""
    compared = {
        name for node in trial.graph.node if node.op_type in _COMPARING | {"Div"} for name in node.input
    }
    answers = set()
    for tensor in trial.graph.initializer:
        if tensor.name not in compared:
            continue
        array = np.atleast_1d(numpy_helper.to_array(tensor))
        columns = array.size if array.size in (2, 4) else array.shape[-1]
        if columns not in (2, 4) or array.size == 0:
            continue
        pair = array.reshape(-1, columns)[0, :2].astype(np.float64)
        for numbers, answer in (((_HEIGHT, _WIDTH), False), ((_WIDTH, _HEIGHT), True)):
            if np.allclose(pair, numbers, rtol=3e-3):
                answers.add(answer)
    return answers.pop() if len(answers) == 1 else None


def _shaped(value: onnx.ValueInfoProto, numbers: list[float]) -> AnyArray:
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    rows = (1,) * (len(dims(value)) - 1)
    return np.asarray(numbers).reshape(*rows, len(numbers)).astype(kind)


def _filled(value: onnx.ValueInfoProto, number: float) -> AnyArray:
    """An array of the declared shape; a dynamic batch is 1, a dynamic pair 2."""
    shape = dims(value)
    shape = [
        size if size > 0 else (1 if axis == 0 and len(shape) > 1 else 2) for axis, size in enumerate(shape)
    ]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.full(shape, number).astype(kind)


def _set(graph: onnx.GraphProto, values: Mapping[str, AnyArray]) -> None:
    for name, array in values.items():
        set_constant(graph, name, array)
    _remove(graph, set(values))


def _remove(graph: onnx.GraphProto, names: set[str]) -> None:
    kept = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
