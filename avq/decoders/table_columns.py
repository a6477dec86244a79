"""Find the meaning of the columns of a short list of boxes: box, score, class, picture, from what computes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.decoders.columns import Column, column
from avq.types import GraphView, NodeView, TensorView

_SELECTING = frozenset({"NonMaxSuppression", "TopK"})


@dataclass(frozen=True, slots=True)
class ColumnRoles:
    """Positions of the columns of a table: first of the box's four, score, class id, picture index (-1: none)."""

    box: int
    score: int
    label: int
    batch: int = -1
    notes: tuple[str, ...] = ()


def column_roles(graph: GraphView, view: TensorView) -> ColumnRoles | None:
    """Decide the meaning of the columns by their computation.

    Class ids and picture indices are cast from integers, or constant. Of the five columns left, the score is the
    first or the last: the box's columns x0 and x1, y0 and y1 come from the same values, the score from others.
    Rotated boxes (an angle in the seventh column) have no second integer, and are refused.
    """
    width = view.shape[-1]
    traced = [column(graph, view.name, len(view.shape) - 1, index) for index in range(width)]
    ids = [i for i, one in enumerate(traced) if not one.sources or from_integers(graph, view.name, i)]
    if width == 6 and not ids:
        return ColumnRoles(0, 4, 5, notes=("the order of the columns is assumed: box, score, class",))
    if len(ids) != width - 5:
        return None
    likeness = {index: _likeness(graph, traced[index]) for index in ids}
    if width == 7 and likeness[ids[0]] == likeness[ids[1]] and ids[0] != 0:
        return None  # every published table starts with the index of the picture
    batch, label = (-1, ids[0]) if width == 6 else sorted(ids, key=lambda index: likeness[index])
    rest = [index for index in range(width) if index not in ids]
    options = [
        (box[0], score) for score, box in ((rest[-1], rest[:-1]), (rest[0], rest[1:])) if box[3] - box[0] == 3
    ]
    for fits in (_same_values, _unlike_the_box):
        fitting = [option for option in options if fits(traced, *option)]
        if len(fitting) == 1:
            return ColumnRoles(*fitting[0], label, batch)
    options.sort(key=lambda option: abs(option[1] - label))
    if not options:
        return None
    note = f"the order of the columns is assumed: score in column {options[0][1]}, class in column {label}"
    return ColumnRoles(*options[0], label, batch, (note,))


def _likeness(graph: GraphView, one: Column) -> int:
    """Return 0 for indices of the picture (constant, multiplied by 0, or NMS's column 0), 2 for NMS's class ids."""
    if one.selected in ({0}, {1}):
        return 2 * max(one.selected)
    factors = [
        graph.constants[i] for n in one.nodes if n.op == "Mul" for i in n.inputs if graph.is_constant(i)
    ]
    return 0 if not one.sources or any(not factor.any() for factor in factors) else 1


def _same_values(traced: Sequence[Column], box: int, score: int) -> bool:
    x0, y0, x1, y1 = (traced[box + index].sources for index in range(4))
    return x0 == x1 and y0 == y1 and traced[score].sources not in (x0, y0)


def _unlike_the_box(traced: Sequence[Column], box: int, score: int) -> bool:
    one = traced[score]
    return all((one.ops, one.layers) != (b.ops, b.layers) for b in traced[box : box + 4])


def score_last(graph: GraphView, view: TensorView) -> bool:
    """Return whether five columns can be a box and its score: not an index or a score and a box."""
    traced = [column(graph, view.name, len(view.shape) - 1, index) for index in range(5)]
    kinds = [(one.ops, one.layers) for one in traced]
    if not traced[0].sources or from_integers(graph, view.name):
        return False
    return kinds[4] != kinds[1] or kinds[0] == kinds[1]


def from_integers(graph: GraphView, name: str, index: int = 0) -> bool:
    """Return whether a column of a float output is cast from integers, such as class ids and batch indices."""
    axis = len(graph.tensors[name].shape) - 1
    for node in column(graph, name, axis, index).nodes:
        source = graph.tensors.get(node.inputs[0])
        if node.op == "Cast" and source is not None and source.dtype.startswith(("int", "uint")):
            return True
        if is_selecting(node):
            return False
    return False


def is_selecting(node: NodeView) -> bool:
    return node.op in _SELECTING or "NMS" in node.op.upper().replace("_", "")
