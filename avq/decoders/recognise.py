"""Recognise the head family of a graph by its structure; the generic family of two decoded outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    as_candidates,
    best_classes,
    best_classes_planes,
    output,
    to_pixels,
    to_xyxy,
)
from avq.decoders.dense import DenseOutput, box_format, dense_output, in_unit_square, of_one_kind
from avq.decoders.gfl import GflDecoder
from avq.decoders.nms_in_graph import NmsInGraphDecoder
from avq.decoders.retinanet import RetinanetDecoder
from avq.decoders.structure import input_size_px
from avq.decoders.yolo import Yolov5Decoder, Yolov6Decoder, Yolov8Decoder, YoloxDecoder
from avq.errors import ModelError, RequestError, nearest
from avq.hookspecs import Decoder
from avq.types import DecoderSpec, GraphView, RawOutputs


class BuiltinDecoder(HeadFamily):
    """Two outputs with one row per anchor: decoded boxes, and scores after sigmoid or softmax.

    Such are the built-in detector, PP-YOLOE, and SSD before its NMS.
    """

    family = "builtin"
    preset_names = ("builtin", "yolov8", "imagenet", "ssd")

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        if len(graph.outputs) != 2:
            return None
        dense = [dense_output(graph, name, any_rows=True) for name in graph.output_names]
        both = [one for one in dense if one is not None]
        if len(both) != 2 or both[0].rows != both[1].rows:
            return None
        for box, scores in (both, both[::-1]):
            if _fits(box, scores):
                return self._spec(graph, box, scores)
        return None

    def _spec(self, graph: GraphView, box: DenseOutput, scores: DenseOutput) -> DecoderSpec | None:
        background = int("Softmax" in scores.column(0).ops)
        params = {
            "boxes": box.name,
            "box_planes": box.planes,
            "scores": scores.name,
            "score_planes": scores.planes,
            "background": background,
            "format": box_format(graph, box.box),
            "normalised": in_unit_square(graph, box.box),
            "size_px": list(input_size_px(graph) or ()),
        }
        classes = scores.features - background
        return DecoderSpec(self.family, params, num_classes=classes) if classes > 0 else None

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        params = spec.params
        table, first = output(raw, params["scores"])[0], params["background"]
        if params["score_planes"]:
            keep, scores, class_ids = best_classes_planes(table[first:], score_threshold)
        else:
            keep, scores, class_ids = best_classes(table[:, first:], score_threshold)
        boxes = output(raw, params["boxes"])[0]
        boxes = boxes[:, keep].T if params["box_planes"] else boxes[keep]
        boxes = to_pixels(to_xyxy(boxes, params["format"]), params["normalised"], params["size_px"])
        return as_candidates(boxes, scores, class_ids)


def _fits(box: DenseOutput, scores: DenseOutput) -> bool:
    if box.features != 4 or any(column.raw or not column.sources for column in box.box):
        return False
    score = scores.column(0)
    scored = bool(score.ops & {"Sigmoid", "Softmax"}) and bool(score.sources)
    return scored and score.layers != box.box[0].layers and of_one_kind(scores)


NONE = "none"

#: More specific families first: the first that recognises a graph is used.
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
    """Return the built-in families, more specific ones first."""
    return _BUILTIN


def find_decoder(family: str, decoders: Sequence[Decoder] | None = None, package: str = "") -> Decoder:
    """Give the decoder of that family.

    Args:
        family: its name.
        decoders: families to look in; the built-in ones when None.
        package: package and version of the plugin that brought it, where a bundle names one.

    Returns:
        The decoder.

    Raises:
        RequestError: no such family; names the package.
    """
    known = builtin_decoders() if decoders is None else decoders
    for decoder in known:
        if decoder.family == family:
            return decoder
    if package:
        raise RequestError(
            f"no plugin here brings the decoder '{family}'",
            seen=f"the bundle was built with {package}",
            fix=f"pip install {package.split(maxsplit=1)[0]}, and allow its plugin where plugins are listed",
        )
    names = [*(decoder.family for decoder in known), NONE]
    raise RequestError(f"there is no decoder named '{family}'", seen=family, fix=nearest(family, names))


def recognise(graph: GraphView, decoders: Sequence[Decoder] | None = None) -> DecoderSpec:
    """Return the decoder spec of a graph's head; ``params["notes"]`` lists the assumptions.

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
    """Return the error for outputs that no family recognises, with the reason where it is known."""
    hidden = sorted({node.op for node in graph.nodes if node.domain == "com.microsoft"})
    if hidden:
        return ModelError(
            "the head cannot be recognised: onnxruntime has fused layers of the model",
            seen=f"operators of com.microsoft: {', '.join(hidden)}",
            fix="give the file from before onnxruntime optimised it",
        )
    alone = _head_alone(graph, known)
    if alone is not None:
        family, names = alone
        beside = ", ".join(f"'{name}'" for name in graph.output_names if name not in names)
        head = ", ".join(f"'{name}'" for name in names)
        return ModelError(
            f"{head} alone would be a {family} head, but other outputs stand beside it: {beside}",
            seen=f"{len(graph.outputs)} outputs",
            fix=f"export the model with {head} as its only output{'s' if len(names) > 1 else ''}",
        )
    seen = "; ".join(f"'{o.name}' {'x'.join(map(str, o.shape))} {o.dtype}" for o in graph.outputs)
    task = graph.metadata.get("task", "")
    seen += f"; exported for '{task}', avq decodes upright boxes" if task not in ("", "detect") else ""
    families = ", ".join(decoder.family for decoder in known)
    return ModelError(
        "the outputs of the model match no known detection head",
        seen=f"outputs {seen}; known families: {families}",
        fix="name the head with --decoder NAME, or build without decoding: --decoder none",
    )


#: Sets of outputs that are tried; a model with more is not searched further.
_MOST_SETS = 300


def _head_alone(graph: GraphView, known: Sequence[Decoder]) -> tuple[str, tuple[str, ...]] | None:
    """The family and outputs of a head among the outputs: the largest set that a family recognises."""
    count = len(graph.outputs)
    sets = (some for size in range(min(count - 1, 3), 0, -1) for some in combinations(graph.outputs, size))
    for some in islice(sets, _MOST_SETS):
        part = replace(graph, outputs=some)
        for decoder in known:
            if decoder.recognise(part) is not None:
                return decoder.family, part.output_names
    return None


def named(family: str, graph: GraphView, decoders: Sequence[Decoder] | None = None) -> DecoderSpec:
    """Return the decoder spec of a given family; "none" accepts any graph.

    Raises:
        RequestError: the family does not exist.
        ModelError: the outputs of the graph do not match the family.
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
    raise ModelError(f"the outputs of the model do not match a {family} head", seen=error.seen, fix=fix)


def head_nodes(
    graph: GraphView, spec: DecoderSpec, decoders: Sequence[Decoder] | None = None
) -> dict[str, str]:
    """Return the nodes of the head and its decoding, which stay float, with reasons; empty for "none"."""
    if spec.family == NONE:
        return {}
    return dict(find_decoder(spec.family, decoders).head_nodes(graph, spec))
