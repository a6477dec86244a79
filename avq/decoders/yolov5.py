"""YOLOv5 and its kin (YOLOv3, v4, v7): anchors, objectness, decoded in the graph or three raw heads.

Raw heads decode as in YOLOv5: xy = (2 s(x) - 0.5 + g) * stride, wh = (2 s(w))^2 * anchor.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from avq.decoders.boxes import Candidates, centre_to_xyxy, finished, in_pixels, output, points_of, sigmoid
from avq.decoders.columns import column
from avq.decoders.dense import DenseOutput, in_unit_square, one_dense
from avq.decoders.family import HeadFamily
from avq.decoders.objectness import objectness_rows
from avq.decoders.structure import Level, class_name_count, input_size_px, levels
from avq.types import F32, I64, DecoderSpec, GraphView, RawOutputs

#: Anchors (width, height) in pixels that YOLOv5 is published with, finest level first, by number of levels.
_PUBLISHED_ANCHORS_PX: Mapping[int, list[list[list[int]]]] = {
    2: [[[10, 14], [23, 27], [37, 58]], [[81, 82], [135, 169], [344, 319]]],
    3: [
        [[10, 13], [16, 30], [33, 23]],
        [[30, 61], [62, 45], [59, 119]],
        [[116, 90], [156, 198], [373, 326]],
    ],
    4: [
        [[19, 27], [44, 40], [38, 94]],
        [[96, 68], [86, 152], [180, 137]],
        [[140, 301], [303, 264], [238, 542]],
        [[436, 615], [739, 380], [925, 792]],
    ],
}


class Yolov5Decoder(HeadFamily):
    """Anchor boxes with objectness."""

    family = "yolov5"
    preset_names = ("yolov5",)

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        rows = one_dense(graph)
        return self._raw_heads(graph) if rows is None else self._decoded(graph, rows)

    def _decoded(self, graph: GraphView, rows: DenseOutput) -> DecoderSpec | None:
        if rows.features < 6:
            return None
        x, objectness, first_class = rows.box[0], rows.column(4), rows.column(5)
        if x.raw or "Sigmoid" not in x.ops or "Sigmoid" not in objectness.ops or "Softmax" in x.ops:
            return None
        if not _own_channels(rows):
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "decoded": True,
            "sigmoid": True,
            "class_sigmoid": "Sigmoid" in first_class.ops,
            "normalised": in_unit_square(graph, rows.box),
            "size_px": list(input_size_px(graph) or ()),
        }
        return DecoderSpec(self.family, params, num_classes=rows.features - 5)

    def _raw_heads(self, graph: GraphView) -> DecoderSpec | None:
        heads = [_raw_head(graph, name) for name in graph.output_names]
        found = [head for head in heads if head is not None]
        if len(found) != len(heads) or len(found) not in _PUBLISHED_ANCHORS_PX:
            return None
        found.sort(key=lambda head: head["stride_px"])
        features = {head["features"] for head in found}
        if len({head["stride_px"] for head in found}) != len(found) or len(features) != 1:
            return None
        anchors = _metadata_anchors(graph, len(found))
        notes = (
            [] if anchors else ["the heads are raw and carry no anchors: YOLOv5's published ones are used"]
        )
        params = {
            "decoded": False,
            "heads": found,
            "anchors_px": anchors or _PUBLISHED_ANCHORS_PX[len(found)],
            "notes": notes,
        }
        return DecoderSpec(self.family, params, num_classes=features.pop() - 5)

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        if not spec.params["decoded"]:
            return _decode_heads(raw, spec, score_threshold)
        rows = output(raw, spec.params["output"])[0]
        _, boxes, scores, class_ids = objectness_rows(rows, spec.params, score_threshold)
        boxes = in_pixels(boxes, spec.params["normalised"], spec.params["size_px"])
        return finished(centre_to_xyxy(boxes), scores, class_ids)


def _own_channels(rows: DenseOutput) -> bool:
    """Whether box and objectness come from one convolution, as anchor heads have it, or box from sigmoids."""
    return bool(rows.box[0].layers & rows.column(4).layers)


def _raw_head(graph: GraphView, name: str) -> dict[str, Any] | None:
    """One raw output: (1, A, h, w, 5 + C) or (1, A * (5 + C), h, w)."""
    shape, size = graph.shape(name), input_size_px(graph)
    if shape is None or size is None or shape[0] != 1 or len(shape) not in (4, 5):
        return None
    if len(shape) == 5:
        anchors, height, width, features = shape[1:]
        axis = 4
    else:
        channels, height, width = shape[1:]
        anchors, features, axis = 3, channels // 3, 1
        if channels % 3 or not _plausible(graph, features - 5):
            return None
    level = next((lv for lv in levels(graph, (name,)) if (lv.height, lv.width) == (height, width)), None)
    first, objectness = column(graph, name, axis, 0), column(graph, name, axis, 4)
    if first.layers != column(graph, name, axis, shape[axis] - 1).layers:
        return None  # box and scores of two convolutions joined: no anchor head
    sigmoid_done = "Sigmoid" in first.ops
    moved_only = first.raw or (
        sigmoid_done and "Sigmoid" in objectness.ops and not first.ops & {"Add", "Mul"}
    )
    if anchors != 3 or features < 6 or level is None or not moved_only:
        return None
    return _head_params(name, level, features, sigmoid_done)


def _head_params(name: str, level: Level, features: int, sigmoid_done: bool) -> dict[str, Any]:
    return {
        "output": name,
        "stride_px": level.stride_px,
        "size": [level.height, level.width],
        "features": features,
        "sigmoid": sigmoid_done,
    }


def _plausible(graph: GraphView, classes: int) -> bool:
    """(1, 3 * (5 + C), h, w) says nothing of C: the names or COCO's 80 must agree, or no other reading exists."""
    named = class_name_count(graph)
    return classes == named if named else classes >= 1


def _metadata_anchors(graph: GraphView, count: int) -> list[list[list[float]]] | None:
    try:
        value = np.asarray(ast.literal_eval(graph.metadata.get("anchors", "")), np.float64)
        return value.reshape(count, 3, 2).tolist()
    except (ValueError, SyntaxError, TypeError):
        return None


def _decode_heads(raw: RawOutputs, spec: DecoderSpec, threshold: float) -> Candidates:
    parts = [
        _decode_head(output(raw, head["output"]), head, np.asarray(anchors, np.float32), threshold)
        for head, anchors in zip(spec.params["heads"], spec.params["anchors_px"], strict=True)
    ]
    boxes, scores, class_ids = (np.concatenate(column) for column in zip(*parts, strict=True))
    return finished(boxes, scores, class_ids)


def _decode_head(
    values: F32, head: Mapping[str, Any], anchors_px: F32, threshold: float
) -> tuple[F32, F32, I64]:
    height, width = head["size"]
    if values.ndim == 4:
        values = values.reshape(1, 3, head["features"], height, width).transpose(0, 1, 3, 4, 2)
    table = values.reshape(-1, head["features"])
    layout = {"planes": False, "sigmoid": head["sigmoid"], "class_sigmoid": head["sigmoid"]}
    picked, boxes, scores, class_ids = objectness_rows(table, layout, threshold)
    boxes = boxes if head["sigmoid"] else sigmoid(boxes)
    anchor, cell = np.divmod(picked, height * width)
    points, stride = points_of([[height, width, head["stride_px"]]], cell)
    centres = (2.0 * boxes[:, :2] - 0.5) * stride + points
    sizes = (2.0 * boxes[:, 2:]) ** 2 * anchors_px[anchor]
    return centre_to_xyxy(np.concatenate([centres, sizes], axis=1)), scores, class_ids
