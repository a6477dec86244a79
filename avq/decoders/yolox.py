"""YOLOX: rows of cx, cy, w, h, objectness, classes; grid arithmetic in the graph or left to the decoder.

Decoding as published by Ge et al., YOLOX (2021): cx = (x + gx) * stride, w = exp(w) * stride.
"""

from __future__ import annotations

import numpy as np

from avq.decoders.boxes import Candidates, centre_to_xyxy, finished, grown, output, points_of
from avq.decoders.dense import DenseOutput, level_params, one_dense, ordered_levels
from avq.decoders.family import HeadFamily
from avq.decoders.objectness import objectness_rows
from avq.types import DecoderSpec, GraphView, RawOutputs


class YoloxDecoder(HeadFamily):
    """Anchor-free, one row per cell, objectness apart from the classes."""

    family = "yolox"
    preset_names = ("yolox", "yolox-legacy")

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        rows = one_dense(graph)
        if rows is None or rows.anchors != 1 or rows.features < 6:
            return None
        objectness, first_class = rows.column(4), rows.column(5)
        separate = objectness.layers.isdisjoint(rows.box[0].layers | first_class.layers)
        if not separate or not objectness.layers or not (_raw(rows) or _decoded(rows)):
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "decoded": not _raw(rows),
            "sigmoid": "Sigmoid" in objectness.ops,
            "class_sigmoid": "Sigmoid" in first_class.ops,
            "levels": level_params(ordered_levels(graph, rows.name, 3 - rows.feature_axis, rows.levels)),
        }
        return DecoderSpec(self.family, params, num_classes=rows.features - 5)

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        rows = output(raw, spec.params["output"])[0]
        picked, boxes, scores, class_ids = objectness_rows(rows, spec.params, score_threshold)
        if not spec.params["decoded"]:
            points, strides = points_of(spec.params["levels"], picked)
            boxes = np.concatenate([boxes[:, :2] * strides + points, grown(boxes[:, 2:]) * strides], axis=1)
        return finished(centre_to_xyxy(boxes), scores, class_ids)


def _raw(rows: DenseOutput) -> bool:
    return all(column.raw for column in rows.box)


def _decoded(rows: DenseOutput) -> bool:
    return "Exp" in rows.box[2].ops and not rows.box[0].ops & {"Exp", "Sigmoid", "Softmax"}
