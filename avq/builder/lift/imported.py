"""A quantized file as builds take it in: its normal float graph, its points there, and the file, runnable."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
from onnx import inliner

from avq.builder.graph.edit import name_nodes
from avq.builder.graph.inputs import drop_listed_initializers, fix_inputs, half_to_float
from avq.builder.graph.model import FloatModel, normalise
from avq.builder.graph.view import view_of
from avq.builder.lift.lift import mark
from avq.errors import ModelError
from avq.types import Edge, Foreign, QuantPoint


@dataclass(frozen=True)
class Imported:
    """What became of a quantized file.

    Attributes:
        model: its float network, normalised.
        foreign: its quantization, on edges of ``model``.
        source: the file itself with its input fixed as ``model``'s is; what the import is proven against.
    """

    model: FloatModel
    foreign: Foreign
    source: onnx.ModelProto


def import_model(
    proto: onnx.ModelProto, *, where: str, input_size_px: tuple[int, int] | None = None
) -> Imported:
    """Read a quantized file of any dialect.

    Args:
        proto: the file, parsed; left as it is.
        where: its name, for messages.
        input_size_px: (width, height), for models that take pictures of any size.

    Raises:
        ModelError: no float graph can be made of it (the text names the pitfall), or it takes no picture.
    """
    try:
        marked = mark(proto)
    except ModelError as error:
        raise ModelError(f"{where}: {error.what}", seen=error.seen, fix=error.fix) from None
    normal = normalise(marked.proto, where=where, input_size_px=input_size_px, marked=True)
    bare, foreign = marked.unmark(normal.proto)
    said = f"{foreign.dialect}: {len(foreign.points)} quantizers taken over" + (
        f", written by {foreign.producer}" if foreign.producer else ""
    )
    model = FloatModel(view_of(bare), bare, (*normal.messages, said))
    return Imported(model, foreign, _runnable(proto, input_size_px))


def on_folded_input(foreign: Foreign, source: FloatModel, folded: FloatModel) -> Foreign:
    """The same points after the picture's cast, scale and mean were put in front of the network."""
    picture = source.view.inputs[0].name
    added = len(folded.proto.graph.node) - len(source.proto.graph.node)
    if added == 0:
        return foreign
    values = folded.proto.graph.node[added - 1].output[0]
    return replace(foreign, points=tuple(_renamed(p, picture, values) for p in foreign.points))


def _renamed(point: QuantPoint, old: str, new: str) -> QuantPoint:
    edge = point.edge
    return replace(point, edge=Edge(new, edge.node, edge.input_index)) if edge.tensor == old else point


def _runnable(proto: onnx.ModelProto, input_size_px: tuple[int, int] | None) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    drop_listed_initializers(copy.graph)
    copy.ir_version = max(copy.ir_version, 8)
    name_nodes(copy.graph)
    half_to_float(copy)
    fix_inputs(copy.graph, input_size_px)
    return copy
