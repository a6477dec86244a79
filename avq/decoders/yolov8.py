"""YOLOv8 and 11: (1, 4 + C, N), boxes decoded in the graph, no objectness."""

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
from avq.decoders.dense import box_format, in_unit_square, one_dense
from avq.decoders.family import HeadFamily
from avq.decoders.structure import input_size_px
from avq.types import DecoderSpec, GraphView, RawOutputs


class Yolov8Decoder(HeadFamily):
    """One output of decoded boxes and class scores, planes or rows."""

    family = "yolov8"
    preset_names = ("yolov8",)

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        rows = one_dense(graph)
        if rows is None or rows.anchors != 1 or rows.features < 5 or rows.box[0].raw:
            return None
        first, last = rows.column(4), rows.column(rows.features - 1)
        scored = all("Sigmoid" in one.ops and one.sources for one in (first, last))
        apart = (first.layers | last.layers).isdisjoint(rows.box[0].layers)
        of_one_layer = rows.features == 5 or first.layers == last.layers
        if not (scored and apart and of_one_layer) or "Exp" in rows.box[2].ops:
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "format": box_format(rows.box),
            "normalised": in_unit_square(graph, rows.box),
            "size_px": list(input_size_px(graph) or ()),
        }
        return DecoderSpec(self.family, params, num_classes=rows.features - 4)

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        table = output(raw, spec.params["output"])[0]
        if spec.params["planes"]:
            keep, scores, class_ids = best_classes_planes(table[4:], score_threshold)
            boxes = table[:4, keep].T
        else:
            keep, scores, class_ids = best_classes(table[:, 4:], score_threshold)
            boxes = table[keep, :4]
        boxes = boxes if spec.params["format"] == "xyxy" else centre_to_xyxy(boxes)
        boxes = in_pixels(boxes, spec.params["normalised"], spec.params["size_px"])
        return finished(boxes, scores, class_ids)
