"""YOLO heads: v8 and 11, X, v6, and v5 with v3, v4 and v7."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    as_candidates,
    best_classes,
    best_classes_planes,
    centre_to_xyxy,
    clipped_exp,
    grid_points,
    logit,
    output,
    sigmoid,
    to_pixels,
    to_xyxy,
)
from avq.decoders.columns import column
from avq.decoders.dense import (
    DenseOutput,
    box_format,
    in_unit_square,
    level_params,
    of_one_kind,
    one_dense,
    ordered_levels,
)
from avq.decoders.structure import Level, class_name_count, input_size_px, levels
from avq.types import F32, I64, DecoderSpec, GraphView, RawOutputs


class Yolov8Decoder(HeadFamily):
    """YOLOv8 and 11: one output (1, 4 + C, N) or (1, N, 4 + C) of decoded boxes and class scores."""

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
        if not (scored and apart and of_one_layer) or "Exp" in rows.box[2].ops or not of_one_kind(rows, 4):
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "format": box_format(graph, rows.box),
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
        boxes = to_pixels(
            to_xyxy(boxes, spec.params["format"]), spec.params["normalised"], spec.params["size_px"]
        )
        return as_candidates(boxes, scores, class_ids)


def objectness_rows(table: F32, params: Mapping[str, Any], threshold: float) -> tuple[I64, F32, F32, I64]:
    """Select the rows with objectness * best class score >= ``threshold``.

    Objectness is compared before other columns are read: no class score exceeds 1.

    Args:
        table: (N, 5 + C), or (5 + C, N) with ``params["planes"]``.
        params: "sigmoid" and "class_sigmoid": whether the graph has applied them.
        threshold: lowest score, 0..1.

    Returns:
        Indices (K,), first four columns (K, 4), scores (K,) and classes (K,).
    """
    columns = table if params["planes"] else table.T
    low = threshold if params["sigmoid"] else logit(threshold)
    picked = np.flatnonzero(columns[4] >= low)
    rows: F32 = np.ascontiguousarray(columns[:, picked].T) if params["planes"] else table[picked]
    best = rows[:, 5:].argmax(axis=1)
    top = rows[np.arange(len(rows)), 5 + best]
    objectness = rows[:, 4] if params["sigmoid"] else sigmoid(rows[:, 4])
    scores = objectness * (top if params["class_sigmoid"] else sigmoid(top))
    keep = scores >= threshold
    return picked[keep], rows[keep, :4], scores[keep], best[keep]


class YoloxDecoder(HeadFamily):
    """YOLOX: rows of cx, cy, w, h, objectness, classes; grid arithmetic in the graph or in the decoder."""

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
        if not of_one_kind(rows, 5):
            return None  # landmarks or angles beside the classes
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
            points, strides = grid_points(spec.params["levels"], picked)
            boxes = np.concatenate(
                [boxes[:, :2] * strides + points, clipped_exp(boxes[:, 2:]) * strides], axis=1
            )
        return as_candidates(centre_to_xyxy(boxes), scores, class_ids)


def _raw(rows: DenseOutput) -> bool:
    return all(column.raw for column in rows.box)


def _decoded(rows: DenseOutput) -> bool:
    return "Exp" in rows.box[2].ops and not rows.box[0].ops & {"Exp", "Sigmoid", "Softmax"}


class Yolov6Decoder(HeadFamily):
    """YOLOv6: decoded centre and size, a column of ones in place of objectness, class scores."""

    family = "yolov6"
    preset_names = ("yolov6",)

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        rows = one_dense(graph)
        if rows is None or rows.features < 6:
            return None
        ones, first_class = rows.column(4), rows.column(5)
        if ones.sources or not ones.constants or not all(np.all(part == 1) for part in ones.constants):
            return None
        if rows.box[0].raw or not first_class.sources or not of_one_kind(rows, 5):
            return None
        params = {
            "output": rows.name,
            "planes": rows.planes,
            "sigmoid": True,
            "class_sigmoid": "Sigmoid" in first_class.ops,
            "format": box_format(graph, rows.box),
        }
        return DecoderSpec(self.family, params, num_classes=rows.features - 5)

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        table = output(raw, spec.params["output"])[0]
        _, boxes, scores, class_ids = objectness_rows(table, spec.params, score_threshold)
        return as_candidates(to_xyxy(boxes, spec.params["format"]), scores, class_ids)


#: Classes per object from which columns are no class scores.
_MANY_CLASSES = 2

#: Published anchors (width, height) of YOLOv5 in pixels, finest level first, by number of levels.
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
    """YOLOv5, v3, v4 and v7: anchor boxes with objectness, decoded in the graph or as raw heads."""

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
        if not _own_channels(rows) or not of_one_kind(rows, 5):
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
        notes = [] if anchors else ["YOLOv5's published anchors are assumed: the raw heads hold none"]
        params = {
            "decoded": False,
            "heads": found,
            "anchors_px": anchors or _PUBLISHED_ANCHORS_PX[len(found)],
            "notes": notes,
        }
        return DecoderSpec(self.family, params, num_classes=features.pop() - 5)

    def contradiction(self, raw: RawOutputs, spec: DecoderSpec) -> str:
        if spec.params["decoded"]:
            return ""
        tables = [_head_table(output(raw, head["output"]), head) for head in spec.params["heads"]]
        done = spec.params["heads"][0]["sigmoid"]
        table = np.concatenate(tables)
        classes = table[table[:, 4] >= (0.35 if done else logit(0.35)), 5:]
        alone = exclusive(classes if done else sigmoid(classes))
        return "" if alone else "several classes with a probability above 0.5 in most boxes"

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        if not spec.params["decoded"]:
            return _decode_heads(raw, spec, score_threshold)
        rows = output(raw, spec.params["output"])[0]
        _, boxes, scores, class_ids = objectness_rows(rows, spec.params, score_threshold)
        boxes = to_pixels(boxes, spec.params["normalised"], spec.params["size_px"])
        return as_candidates(centre_to_xyxy(boxes), scores, class_ids)


def exclusive(class_probabilities: F32) -> bool:
    """Return whether columns can be class scores: an object has one class, seldom two.

    Landmarks between objectness and classes come from the same convolution, and have no structure of their own.

    Args:
        class_probabilities: (N, C) of the rows with a high objectness.
    """
    if len(class_probabilities) == 0 or class_probabilities.shape[1] < 3:
        return True
    return float(np.median((class_probabilities > 0.5).sum(axis=1))) < _MANY_CLASSES


def _own_channels(rows: DenseOutput) -> bool:
    """Return whether box and objectness come from one convolution, as in anchor heads."""
    return bool(rows.box[0].layers & rows.column(4).layers)


def _raw_head(graph: GraphView, name: str) -> dict[str, Any] | None:
    """Recognise one raw output: (1, A, h, w, 5 + C) or (1, A * (5 + C), h, w)."""
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
        return None  # box and scores come from two convolutions: not an anchor head
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
    """Return whether the class count of (1, 3 * (5 + C), h, w) matches the class names, where there are any."""
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
    return as_candidates(boxes, scores, class_ids)


def _head_table(values: F32, head: Mapping[str, Any]) -> F32:
    """Return one raw head as (3 * h * w, 5 + C), anchor by anchor."""
    height, width = head["size"]
    if values.ndim == 4:
        values = values.reshape(1, 3, head["features"], height, width).transpose(0, 1, 3, 4, 2)
    return values.reshape(-1, head["features"])


def _decode_head(
    values: F32, head: Mapping[str, Any], anchors_px: F32, threshold: float
) -> tuple[F32, F32, I64]:
    height, width = head["size"]
    table = _head_table(values, head)
    layout = {"planes": False, "sigmoid": head["sigmoid"], "class_sigmoid": head["sigmoid"]}
    picked, boxes, scores, class_ids = objectness_rows(table, layout, threshold)
    boxes = boxes if head["sigmoid"] else sigmoid(boxes)
    anchor, cell = np.divmod(picked, height * width)
    points, stride = grid_points([[height, width, head["stride_px"]]], cell)
    centres = (2.0 * boxes[:, :2] - 0.5) * stride + points
    sizes = (2.0 * boxes[:, 2:]) ** 2 * anchors_px[anchor]
    return centre_to_xyxy(np.concatenate([centres, sizes], axis=1)), scores, class_ids
