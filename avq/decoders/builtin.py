"""Two outputs, decoded boxes and class scores: the built-in detector, PP-YOLOE, SSD before its NMS and the like."""

from __future__ import annotations

from avq.decoders.boxes import (
    Candidates,
    best_classes,
    best_classes_planes,
    centre_to_xyxy,
    finished,
    in_pixels,
    output,
)
from avq.decoders.dense import DenseOutput, box_format, dense_output, in_unit_square
from avq.decoders.family import HeadFamily
from avq.decoders.structure import input_size_px
from avq.types import DecoderSpec, GraphView, RawOutputs


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
