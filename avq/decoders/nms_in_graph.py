"""Heads with a short list of boxes: NMS or top-k in the graph (SSD, torchvision, YOLOv10), DETR queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    as_candidates,
    logit,
    no_candidates,
    output,
    sigmoid,
    to_pixels,
    to_xyxy,
)
from avq.decoders.columns import column
from avq.decoders.dense import box_format, in_unit_square
from avq.decoders.structure import head_region, input_size_px, nodes_after
from avq.decoders.table_columns import column_roles, from_integers, is_selecting, score_last
from avq.types import AnyArray, DecoderSpec, GraphView, PreprocessSpec, RawOutputs, TensorView
from avq.types.preprocess import PRESETS

_MAX_QUERIES = 2000
# Scores of the class "no object", read as those of an object, are high in nearly every query.
_CERTAIN, _MOST_QUERIES = 0.35, 0.9


class NmsInGraphDecoder(HeadFamily):
    """Boxes, scores and classes of a few candidates, without further NMS."""

    family = "nms_in_graph"
    nms_in_graph = True

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """Return the head; for DETR also the decoder, which refines the selected queries.

        Queries are selected by scores that differ little, and each box is refined from its query alone, so noise
        there moves whole boxes; published INT8 decoders lose most of their accuracy. The decoder is a small share of
        the work: hundreds of queries against thousands of cells.
        """
        reasons = dict(super().head_nodes(graph, spec))
        selecting = tuple(n for n in graph.nodes if n.op == "TopK") if _is_detr(graph) else ()
        for node in nodes_after(graph, selecting):
            reasons.setdefault(node.name, "refines queries after their selection: the decoder of the head")
        return reasons

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        size = input_size_px(graph)
        return [] if size is None else [PRESETS[name](*size) for name in _preset_names(graph, spec)]

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        if input_size_px(graph) is None:
            return None
        params = _triplets(graph)
        if params is None and _selects(graph):
            params = _columns(graph) or _lists(graph)
        if params is None:
            params = _queries(graph)
        if params is None:
            return None
        params["size_px"] = list(input_size_px(graph) or ())
        return DecoderSpec(self.family, params, num_classes=params.pop("classes", 0))

    def contradiction(self, raw: RawOutputs, spec: DecoderSpec) -> str:
        if spec.params["layout"] == "table":
            return _table_contradiction(output(raw, spec.params["output"]), spec.params)
        if spec.params["layout"] == "lists":
            labels = output(raw, spec.params["labels"]).reshape(-1)
            return "" if np.all(labels == np.floor(labels)) else "class ids that are not whole numbers"
        if spec.params["layout"] == "queries":
            return _query_contradiction(raw, spec.params)
        return ""

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        read = _READERS[spec.params["layout"]]
        boxes, scores, class_ids = read(raw, spec.params, score_threshold)
        if len(scores) == 0:
            return no_candidates()
        boxes = to_xyxy(boxes, spec.params["format"])
        return as_candidates(
            to_pixels(boxes, spec.params["normalised"], spec.params["size_px"]), scores, class_ids
        )


def _preset_names(graph: GraphView, spec: DecoderSpec) -> tuple[str, ...]:
    if _is_detr(graph):
        return ("rtdetr", "imagenet")
    if spec.params["layout"] == "table":
        return ("yolov8", "yolox")
    return ("ssd", "torchvision", "imagenet", "yolov8")


def _is_detr(graph: GraphView) -> bool:
    """Return whether the head consists of matrix products on queries, without convolutions."""
    layers, _ = head_region(graph)
    return bool(layers) and not any("Conv" in node.op for node in layers)


def _selects(graph: GraphView) -> bool:
    return any(is_selecting(node) for node in head_region(graph)[1])


def _last_size(view: TensorView) -> int:
    return view.shape[-1] if view.shape else -1


def _geometry(graph: GraphView, name: str, first: int = 0) -> dict[str, Any]:
    """Box format and unit of the four columns from ``first`` along the last axis."""
    axis = len(graph.tensors[name].shape) - 1
    box = [column(graph, name, axis, first + index) for index in range(4)]
    return {"format": box_format(graph, box), "normalised": in_unit_square(graph, box)}


def _columns(graph: GraphView) -> dict[str, Any] | None:
    """Recognise one table of six columns (box, score, class) or seven (and the picture's index), in any order."""
    if len(graph.outputs) != 1 or _last_size(graph.outputs[0]) not in (6, 7):
        return None
    view = graph.outputs[0]
    roles = column_roles(graph, view)
    if roles is None:
        return None
    geometry = _geometry(graph, view.name, roles.box)
    params = {
        "layout": "table",
        "output": view.name,
        "first": roles.box,
        "places": [roles.score, roles.label],
    }
    return {**params, "batch": roles.batch, "notes": list(roles.notes), **geometry}


def _lists(graph: GraphView) -> dict[str, Any] | None:
    """Recognise separate outputs for boxes, scores, classes and optionally a count; or x0, y0, x1, y1, score rows."""
    boxes = [v for v in graph.outputs if _last_size(v) in (4, 5) and len(v.shape) >= 2 and _is_float(v)]
    boxes = [v for v in boxes if len(v.shape) == max(len(other.shape) for other in boxes)]
    rest = [v for v in graph.outputs if v not in boxes]
    if len(boxes) != 1 or not rest:
        return None
    count = _count_output(graph, rest)
    lists = [v for v in rest if v.name != count]
    labels = [v for v in lists if not _is_float(v)] or [v for v in lists if from_integers(graph, v.name)]
    scores = [v for v in lists if v not in labels[:1]]
    joined = _last_size(boxes[0]) == 5
    if joined and not score_last(graph, boxes[0]):
        return None
    if len(labels) != 1 or len(scores) != (0 if joined else 1):
        return None
    tensorflow = count is not None and _is_float(labels[0])
    geometry = _geometry(graph, boxes[0].name) | {"format": "yxyx" if tensorflow else "xyxy"}
    if tensorflow:
        geometry["normalised"] = True
    return {
        "layout": "lists",
        "boxes": boxes[0].name,
        "scores": "" if joined else scores[0].name,
        "labels": labels[0].name,
        "count": count or "",
        **geometry,
    }


def _is_float(view: TensorView) -> bool:
    return view.dtype.startswith("float")


def _count_output(graph: GraphView, views: Sequence[TensorView]) -> str | None:
    """Return the output with the number of valid boxes, a single number."""
    single = [v.name for v in views if v.shape in ((), (1,), (1, 1))]
    return single[0] if len(single) == 1 and len(views) >= 3 else None


def _triplets(graph: GraphView) -> dict[str, Any] | None:
    """Recognise (batch, class, box) indices of NonMaxSuppression with boxes (1, N, 4) and scores (1, C, N)."""
    if len(graph.outputs) != 3:
        return None
    picked = [v for v in graph.outputs if v.dtype == "int64" and _last_size(v) == 3]
    floats = [v for v in graph.outputs if _is_float(v) and len(v.shape) == 3]
    if len(picked) != 1 or len(floats) != 2:
        return None
    suppression = graph.producer(picked[0].name)
    if suppression is None or suppression.op != "NonMaxSuppression":
        return None
    for boxes, scores in (floats, floats[::-1]):
        if _last_size(boxes) == 4 and scores.shape[2] == boxes.shape[1]:
            centre = int(suppression.attributes.get("center_point_box", 0)) == 1
            geometry = _geometry(graph, boxes.name) | ({"format": "cxcywh"} if centre else {})
            names = {"boxes": boxes.name, "scores": scores.name, "picked": picked[0].name}
            return {"layout": "triplets", "classes": scores.shape[1], **names, **geometry}
    return None


def _queries(graph: GraphView) -> dict[str, Any] | None:
    """Recognise DETR: a set of queries, boxes through a sigmoid, one score per class, no NMS."""
    if not _is_detr(graph):
        return None
    views = list(graph.outputs)
    if any(len(v.shape) != 3 or not 1 < v.shape[1] <= _MAX_QUERIES for v in views):
        return None
    if len(views) == 1 and views[0].shape[2] > 5:
        return _query_params(graph, views[0], views[0], 4)
    for boxes, scores in (views, views[::-1]) if len(views) == 2 else ():
        if boxes.shape[2] == 4 and boxes.shape[1] == scores.shape[1]:
            params = _query_params(graph, boxes, scores, 0)
            if params is not None:
                return params
    return None


def _query_params(
    graph: GraphView, boxes: TensorView, scores: TensorView, first: int
) -> dict[str, Any] | None:
    geometry = _geometry(graph, boxes.name)
    every = [column(graph, scores.name, 2, index) for index in range(first, scores.shape[2])]
    one = every[0]
    if any((other.ops, other.layers) != (one.ops, one.layers) for other in every):
        return None  # keypoints or angles beside the classes
    if "Sigmoid" not in column(graph, boxes.name, 2, 0).ops or not one.sources:
        return None
    background = int("Softmax" in one.ops)
    return {
        "layout": "queries",
        "boxes": boxes.name,
        "scores": scores.name,
        "first": first,
        "classes": scores.shape[2] - first - background,
        "background_last": background,
        "sigmoid": bool(one.ops & {"Sigmoid", "Softmax"}),
        **geometry,
    }


_Rows = tuple[AnyArray, AnyArray, AnyArray]


def _table_contradiction(table: AnyArray, params: Mapping[str, Any]) -> str:
    """Return why a table cannot have its columns in this order; rows with a score of 0 or less are padding."""
    rows = table.reshape(-1, table.shape[-1])
    score, label = params["places"]
    rows = rows[rows[:, score] > 0]
    ids = rows[:, label]
    if len(rows) and rows[:, score].max() > 1.001:
        return f"a score of {rows[:, score].max():g} in column {score}, above 1"
    if np.any(ids != np.floor(ids)):
        return f"class ids in column {label} that are not whole numbers"
    batch = params.get("batch", -1)
    if batch >= 0 and np.any(rows[:, batch] != 0):
        return f"picture indices in column {batch} of one picture that are not 0"
    return ""


def _query_contradiction(raw: RawOutputs, params: Mapping[str, Any]) -> str:
    """Return why scores cannot be those of classes: queries far outnumber objects, and most of them find none."""
    certain = np.unique(_read_row_classes(raw, params, _CERTAIN)[0])
    count = output(raw, params["scores"]).shape[1]
    if len(certain) <= _MOST_QUERIES * count:
        return ""
    return f"scores >= {_CERTAIN} in {len(certain)} of {count} queries, which mostly find nothing"


def _read_table(raw: RawOutputs, params: Mapping[str, Any], threshold: float) -> _Rows:
    table = output(raw, params["output"])
    rows = table.reshape(-1, table.shape[-1])
    score, label = params["places"]
    rows = rows[rows[:, score] >= threshold]
    first = params["first"]
    return rows[:, first : first + 4], rows[:, score], rows[:, label].astype(np.int64)


def _read_lists(raw: RawOutputs, params: Mapping[str, Any], threshold: float) -> _Rows:
    table = output(raw, params["boxes"])
    boxes = table.reshape(-1, table.shape[-1])
    scores = output(raw, params["scores"]).reshape(-1) if params["scores"] else boxes[:, 4]
    labels = output(raw, params["labels"]).reshape(-1).astype(np.int64)
    count = int(output(raw, params["count"]).reshape(-1)[0]) if params["count"] else len(scores)
    keep = np.flatnonzero(scores[:count] >= threshold)
    return boxes[keep, :4], scores[keep], labels[keep]


def _read_triplets(raw: RawOutputs, params: Mapping[str, Any], threshold: float) -> _Rows:
    picked = output(raw, params["picked"])
    picked = picked[(picked[:, 0] == 0) & (picked[:, 2] >= 0)]
    scores = output(raw, params["scores"])[0][picked[:, 1], picked[:, 2]]
    keep = scores >= threshold
    return output(raw, params["boxes"])[0][picked[keep, 2]], scores[keep], picked[keep, 1]


def _read_queries(raw: RawOutputs, params: Mapping[str, Any], threshold: float) -> _Rows:
    """Return every class of a query above the threshold as a box, as DETR's post-processing does."""
    query, scores, class_ids = _read_row_classes(raw, params, threshold)
    return output(raw, params["boxes"])[0][query, :4], scores, class_ids


def _read_row_classes(raw: RawOutputs, params: Mapping[str, Any], threshold: float) -> _Rows:
    """Return the queries, scores and classes from the threshold on."""
    first, last = params["first"], -params["background_last"] or None
    values = output(raw, params["scores"])[0][:, first:last]
    low = threshold if params["sigmoid"] else logit(threshold)
    query, class_ids = np.nonzero(values >= low)
    scores = values[query, class_ids]
    return query, scores if params["sigmoid"] else sigmoid(scores), class_ids


_READERS = {"table": _read_table, "lists": _read_lists, "triplets": _read_triplets, "queries": _read_queries}
