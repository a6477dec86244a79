"""Which head family a graph has: asked of every family, answered by structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avq.decoders.builtin import BuiltinDecoder
from avq.decoders.gfl import GflDecoder
from avq.decoders.nms_in_graph import NmsInGraphDecoder
from avq.decoders.retinanet import RetinanetDecoder
from avq.decoders.yolov5 import Yolov5Decoder
from avq.decoders.yolov6 import Yolov6Decoder
from avq.decoders.yolov8 import Yolov8Decoder
from avq.decoders.yolox import YoloxDecoder
from avq.errors import ModelError, RequestError, nearest
from avq.hookspecs import Decoder
from avq.types import DecoderSpec, GraphView

NONE = "none"

#: More specific families first: the first that answers is taken.
_BUILTIN: tuple[Decoder, ...] = (
    NmsInGraphDecoder(),
    Yolov6Decoder(),
    YoloxDecoder(),
    Yolov5Decoder(),
    Yolov8Decoder(),
    GflDecoder(),
    RetinanetDecoder(),
    BuiltinDecoder(),
)


def builtin_decoders() -> tuple[Decoder, ...]:
    """The families avq knows by itself, more specific ones first."""
    return _BUILTIN


def find_decoder(family: str, decoders: Sequence[Decoder] | None = None) -> Decoder:
    """The decoder of that family.

    Raises:
        RequestError: no such family.
    """
    known = builtin_decoders() if decoders is None else decoders
    for decoder in known:
        if decoder.family == family:
            return decoder
    names = [*(decoder.family for decoder in known), NONE]
    raise RequestError(f"there is no decoder named '{family}'", seen=family, fix=nearest(family, names))


def recognise(graph: GraphView, decoders: Sequence[Decoder] | None = None) -> DecoderSpec:
    """The head's spec; ``params["notes"]`` tells people what was assumed.

    Raises:
        ModelError: no family has this structure.
    """
    known = builtin_decoders() if decoders is None else decoders
    specs = [spec for decoder in known if (spec := decoder.recognise(graph)) is not None]
    if not specs:
        raise unknown_head(graph, known)
    if len(specs) == 1:
        return specs[0]
    others = ", ".join(spec.family for spec in specs[1:])
    note = f"the head also fits {others}; {specs[0].family} is the more specific (--decoder overrides)"
    notes = [*specs[0].params.get("notes", []), note]
    return replace(specs[0], params={**specs[0].params, "notes": notes})


def unknown_head(graph: GraphView, known: Sequence[Decoder]) -> ModelError:
    seen = "; ".join(f"'{o.name}' {'x'.join(map(str, o.shape))} {o.dtype}" for o in graph.outputs)
    task = graph.metadata.get("task", "")
    seen += f"; exported for '{task}', avq decodes upright boxes" if task not in ("", "detect") else ""
    families = ", ".join(decoder.family for decoder in known)
    return ModelError(
        "no known detection head has the structure of this model's outputs",
        seen=f"outputs {seen}; known families: {families}",
        fix="name it with --decoder NAME, or build without decoding: --decoder none",
    )


def named(family: str, graph: GraphView, decoders: Sequence[Decoder] | None = None) -> DecoderSpec:
    """The spec of a family that the user named; "none" takes any graph.

    Raises:
        RequestError: no such family.
        ModelError: the graph's outputs cannot be read as that family's.
    """
    if family == NONE:
        return DecoderSpec(NONE)
    known = builtin_decoders() if decoders is None else decoders
    spec = find_decoder(family, known).recognise(graph)
    if spec is not None:
        return spec
    error = unknown_head(graph, known)
    fitting = [d.family for d in known if d.recognise(graph) is not None]
    fix = f"--decoder {fitting[0]}, or leave it out" if fitting else "--decoder none"
    raise ModelError(f"the outputs cannot be read as a {family} head", seen=error.seen, fix=fix)


def head_nodes(
    graph: GraphView, spec: DecoderSpec, decoders: Sequence[Decoder] | None = None
) -> dict[str, str]:
    """Nodes that stay float because they are the head or decode it, with reasons; empty for "none"."""
    if spec.family == NONE:
        return {}
    return dict(find_decoder(spec.family, decoders).head_nodes(graph, spec))
