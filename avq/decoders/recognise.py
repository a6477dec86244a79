"""Which head family a graph has: asked of every family, answered by structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    best_classes,
    best_classes_planes,
    centre_to_xyxy,
    finished,
    in_pixels,
    output,
)
from avq.decoders.dense import DenseOutput, box_format, dense_output, in_unit_square
from avq.decoders.gfl import GflDecoder
from avq.decoders.nms_in_graph import NmsInGraphDecoder
from avq.decoders.retinanet import RetinanetDecoder
from avq.decoders.structure import input_size_px
from avq.decoders.yolo import Yolov5Decoder, Yolov6Decoder, Yolov8Decoder, YoloxDecoder
from avq.errors import ModelError, RequestError, nearest
from avq.hookspecs import Decoder
from avq.types import DecoderSpec, GraphView, RawOutputs

# Two outputs, decoded boxes and class scores: the built-in detector, PP-YOLOE, SSD before its NMS and
# the like.


class BuiltinDecoder(HeadFamily):
    """One row per anchor in both outputs; boxes come decoded, scores after sigmoid or softmax."""

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
            "format": box_format(box.box),
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
        boxes = boxes if params["format"] == "xyxy" else centre_to_xyxy(boxes)
        return finished(in_pixels(boxes, params["normalised"], params["size_px"]), scores, class_ids)


def _fits(box: DenseOutput, scores: DenseOutput) -> bool:
    if box.features != 4 or any(column.raw or not column.sources for column in box.box):
        return False
    score = scores.column(0)
    return (
        bool(score.ops & {"Sigmoid", "Softmax"}) and bool(score.sources) and score.layers != box.box[0].layers
    )


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
