"""YOLOv6: decoded centre and size, a column of ones where objectness would be, class scores."""

from __future__ import annotations

import numpy as np

from avq.decoders.boxes import Candidates, centre_to_xyxy, finished, output
from avq.decoders.dense import box_format, one_dense
from avq.decoders.family import HeadFamily
from avq.decoders.objectness import objectness_rows
from avq.types import DecoderSpec, GraphView, RawOutputs


class Yolov6Decoder(HeadFamily):
    """Anchor-free, decoded in the graph, objectness constant one."""

    family = "yolov6"
    preset_names = ("yolov6",)

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        rows = one_dense(graph)
        if rows is None or rows.features < 6:
            return None
        ones, first_class = rows.column(4), rows.column(5)
        if ones.sources or not ones.constants or not all(np.all(part == 1) for part in ones.constants):
            return None
        if rows.box[0].raw or not first_class.sources:
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "sigmoid": True,
            "class_sigmoid": "Sigmoid" in first_class.ops,
            "format": box_format(rows.box),
        }
        return DecoderSpec(self.family, params, num_classes=rows.features - 5)

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        table = output(raw, spec.params["output"])[0]
        _, boxes, scores, class_ids = objectness_rows(table, spec.params, score_threshold)
        corners = boxes if spec.params["format"] == "xyxy" else centre_to_xyxy(boxes)
        return finished(corners, scores, class_ids)
