"""Generalised focal loss heads: NanoDet, NanoDet-Plus, PicoDet, raw YOLOv8. A side is an expectation over bins.

After Li et al., Generalized Focal Loss (2020): distance = sum(softmax(bins) * k) * stride. The graph does not hold
the point of a cell, so the published ones are used: gx * s + (s - 1) / 2 for three feature maps (NanoDet); gx * s for
four or more in one output (NanoDet-Plus); (gx + 1/2) * s for four or more in pairs of outputs (PicoDet), and for 16
bins (YOLOv8 and YOLO11 without their decoding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    as_candidates,
    distances_to_xyxy,
    grid_points,
    logit,
    output,
    sigmoid,
    softmax,
)
from avq.decoders.columns import Column
from avq.decoders.dense import (
    DenseOutput,
    MapOutput,
    by_level,
    column_runs,
    dense_output,
    level_params,
    map_outputs,
    of_one_kind,
    ordered_levels,
    rows_of,
)
from avq.decoders.structure import class_name_count, keypoint_columns
from avq.types import F32, I64, DecoderSpec, GraphView, PreprocessSpec, RawOutputs
from avq.types.preprocess import PRESETS

_MIN_BINS, _MAX_BINS = 5, 33
_USUAL_BINS = (8, 17, 16)
_YOLOV8_BINS = 16
_COCO_CLASSES = 80
_ANCHORS_OF_RETINANET = 9

#: Family member -> (a, b): the point of cell g is g * s + a * s + b.
_POINTS: Mapping[str, tuple[float, float]] = {
    "nanodet": (0.5, -0.5),
    "nanodet-plus": (0.0, 0.0),
    "picodet": (0.5, 0.0),
    "yolov8": (0.5, 0.0),
}

_PRESET_NAMES = {"picodet": ("picodet", "nanodet"), "yolov8": ("yolov8", "nanodet")}


class GflDecoder(HeadFamily):
    """Class scores and four distance distributions per cell, nothing decoded in the graph."""

    family = "gfl"

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        parts, member = _separate_maps(graph), "nanodet"
        if parts is None:
            parts = _joined_rows(graph)
        if parts is None:
            return None
        count = sum(len(part["levels"]) for part in parts["parts"])
        if count > 3:
            member = "nanodet-plus" if len(graph.outputs) == 1 else "picodet"
        member = "yolov8" if parts["bins"] == _YOLOV8_BINS else member
        notes = [f"grid points of {member} are assumed: the graph does not hold them"]
        params = {**parts, "member": member, "point": list(_POINTS[member]), "notes": notes + parts["notes"]}
        return DecoderSpec(self.family, params, num_classes=parts["classes"])

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        member = spec.params["member"]
        names = _PRESET_NAMES.get(member, ("nanodet", "nanodet-stretch", "picodet"))
        height, width = graph.inputs[0].shape[2:]
        return [PRESETS[name](width, height) for name in names]

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        parts = [_decode(raw, part, spec.params, score_threshold) for part in spec.params["parts"]]
        boxes, scores, class_ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return as_candidates(boxes, scores, class_ids)


def _bins_of(features: int) -> int | None:
    bins, rest = divmod(features, 4)
    return bins if rest == 0 and _MIN_BINS <= bins <= _MAX_BINS else None


def _scored(one: Column) -> bool:
    return one.raw or ("Sigmoid" in one.ops and not one.ops & {"Exp", "Softmax"})


def _separate_maps(graph: GraphView) -> dict[str, Any] | None:
    """One or two outputs per feature map."""
    outputs = map_outputs(graph)
    if not outputs or any(one.rows != one.level.cells for one in outputs):
        return None
    groups = by_level(outputs)
    if len(groups) < 2:
        return None
    if all(len(group) == 1 for group in groups):
        return _combined_maps(groups)
    return _paired_maps(groups)


def _paired_maps(groups: list[list[MapOutput]]) -> dict[str, Any] | None:
    if any(len(group) != 2 for group in groups):
        return None
    pairs = [_ordered(group) for group in groups]
    complete = [pair for pair in pairs if pair is not None]
    widths = {(scores.features, box.features) for scores, box in complete}
    if len(complete) != len(groups) or len(widths) != 1:
        return None
    classes, sides = widths.pop()
    if sides == 4 * _ANCHORS_OF_RETINANET and classes % _ANCHORS_OF_RETINANET == 0:
        return None  # nine anchors are common, nine bins are not
    parts = [
        {
            "scores": scores.params() | {"first": 0},
            "box": box.params() | {"first": 0},
            "levels": level_params([scores.level]),
        }
        for scores, box in complete
    ]
    return _described(parts, classes, _bins_of(sides) or 0, "Sigmoid" in complete[0][0].column(0).ops, [])


def _ordered(group: list[MapOutput]) -> tuple[MapOutput, MapOutput] | None:
    """Return (scores, box): the box is raw and has 4 * bins columns; a sigmoid, else file order, decides."""
    first, second = group
    if "Sigmoid" in second.column(0).ops and "Sigmoid" not in first.column(0).ops:
        first, second = second, first
    for scores, box in ((first, second), (second, first)):
        if _bins_of(box.features) and box.column(0).raw and _scored(scores.column(0)):
            return (scores, box) if of_one_kind(scores) and of_one_kind(box) else None
    return None


def _combined_maps(groups: list[list[MapOutput]]) -> dict[str, Any] | None:
    outputs = [group[0] for group in groups]
    cut = _class_cut(outputs[0])
    if cut is None or len({one.features for one in outputs}) != 1:
        return None
    classes, bins, notes = cut
    scores_at, box_at = _starts(outputs[0], classes, bins)
    parts = [
        {
            "scores": one.params() | {"first": scores_at},
            "box": one.params() | {"first": box_at},
            "levels": level_params([one.level]),
        }
        for one in outputs
    ]
    described = _described(parts, classes, bins, "Sigmoid" in outputs[0].column(scores_at).ops, notes)
    return _without_keypoints(described, outputs[0].features)


def _joined_rows(graph: GraphView) -> dict[str, Any] | None:
    """All feature maps in one output, or in one for scores and one for boxes."""
    outputs = [dense_output(graph, name) for name in graph.output_names]
    dense = [one for one in outputs if one is not None and one.anchors == 1]
    if len(dense) != len(outputs) or len(dense) not in (1, 2):
        return None
    if len(dense) == 1:
        cut = _class_cut(dense[0])
        if cut is None:
            return None
        return _joined(graph, dense[0], dense[0], _starts(dense[0], *cut[:2]), cut)
    scores, box = dense
    if "Sigmoid" in box.column(0).ops or not _bins_of(box.features):
        scores, box = box, scores
    bins = _bins_of(box.features)
    if bins is None or not box.column(0).raw or not _scored(scores.column(0)):
        return None
    if not (of_one_kind(scores) and of_one_kind(box)):
        return None
    return _joined(graph, scores, box, (0, 0), (scores.features, bins, []))


def _joined(
    graph: GraphView,
    scores: DenseOutput,
    box: DenseOutput,
    starts: tuple[int, int],
    cut: tuple[int, int, list[str]],
) -> dict[str, Any]:
    classes, bins, notes = cut
    ordered = ordered_levels(graph, scores.name, 3 - scores.feature_axis, scores.levels)
    part = {
        "scores": {"output": scores.name, "axis": scores.feature_axis, "first": starts[0]},
        "box": {"output": box.name, "axis": box.feature_axis, "first": starts[1]},
        "levels": level_params(ordered),
    }
    described = _described([part], classes, bins, "Sigmoid" in scores.column(starts[0]).ops, notes)
    return _without_keypoints(described, scores.features) if scores is box else described


def _class_cut(rows: DenseOutput | MapOutput) -> tuple[int, int, list[str]] | None:
    """Return (classes, bins, notes), split at the last sigmoid, at a change of layer, or by the class names."""
    first, last = rows.column(0), rows.column(rows.features - 1)
    if not (last.raw and _scored(first)) and not (first.raw and _scored(last)):
        return None
    if first.ops != last.ops or first.layers != last.layers:
        return _at_the_change(rows, _first_unlike(rows, first))
    for classes in (class_name_count(rows.graph), _COCO_CLASSES):
        bins = _bins_of(rows.features - classes) if classes else None
        if bins in _USUAL_BINS:
            return (
                classes,
                bins,
                [f"{classes} classes are assumed: the graph does not separate classes and distances"],
            )
    return None


def _at_the_change(rows: DenseOutput | MapOutput, cut: int) -> tuple[int, int, list[str]] | None:
    """Return the split at a change of layer: classes first, or last as in YOLOv8, by sigmoid, names or usual bins.

    Keypoints after them are left out where the metadata names their number.
    """
    named, runs, columns = class_name_count(rows.graph), column_runs(rows), rows.features
    if len(runs) > 2:
        keypoints = keypoint_columns(rows.graph)
        if len(runs) != 3 or runs[-1] != keypoints or "Sigmoid" in rows.column(0).ops:
            return None  # columns of a third kind that the metadata does not describe
        columns -= keypoints
    readings = [(cut, _bins_of(columns - cut)), (columns - cut, _bins_of(cut))]
    if "Sigmoid" in rows.column(0).ops:
        readings = readings[:1]
    elif columns < rows.features or "Sigmoid" in rows.column(columns - 1).ops:
        readings = readings[1:]
    splits = [(classes, bins, bins in _USUAL_BINS) for classes, bins in readings if bins]
    splits.sort(key=lambda split: (split[0] != named, not split[2]))
    return (splits[0][0], splits[0][1], []) if splits else None


def _starts(rows: DenseOutput | MapOutput, classes: int, bins: int) -> tuple[int, int]:
    """Return (first class column, first box column); boxes come first if the change of layer is after them."""
    first = rows.column(0)
    leading = rows.column(4 * bins - 1)
    trailing = rows.column(4 * bins)
    boxes_lead = first.layers == leading.layers != trailing.layers and first.raw and classes != 4 * bins
    if classes == 4 * bins:
        boxes_lead = "Sigmoid" in trailing.ops and first.raw
    return (4 * bins, 0) if boxes_lead else (0, classes)


def _first_unlike(rows: DenseOutput | MapOutput, first: Column) -> int:
    """Find the first column computed differently from column 0, by binary search."""
    low, high = 0, rows.features - 1
    while high - low > 1:
        middle = (low + high) // 2
        one = rows.column(middle)
        same = one.ops == first.ops and one.layers == first.layers
        low, high = (middle, high) if same else (low, middle)
    return high


def _described(
    parts: list[dict[str, Any]], classes: int, bins: int, sigmoid_done: bool, notes: list[str]
) -> dict[str, Any]:
    return {"parts": parts, "classes": classes, "bins": bins, "sigmoid": sigmoid_done, "notes": notes}


def _without_keypoints(described: dict[str, Any], columns: int) -> dict[str, Any]:
    """Add the number of keypoint columns, which are not read, where there are any."""
    keypoints = columns - described["classes"] - 4 * described["bins"]
    if not keypoints:
        return described
    notes = [*described["notes"], f"{keypoints} columns of keypoints are left out"]
    return {**described, "keypoints": keypoints, "notes": notes}


def _decode(
    raw: RawOutputs, part: Mapping[str, Any], params: Mapping[str, Any], threshold: float
) -> tuple[F32, F32, I64]:
    classes, bins = params["classes"], params["bins"]
    start = part["scores"]["first"]
    rows = rows_of(output(raw, part["scores"]["output"]), part["scores"])[:, start : start + classes]
    top = rows.max(axis=1)
    picked = np.flatnonzero(top >= (threshold if params["sigmoid"] else logit(threshold)))
    scores = top[picked] if params["sigmoid"] else sigmoid(top[picked])
    class_ids = rows[picked].argmax(axis=1)
    sides = rows_of(output(raw, part["box"]["output"]), part["box"])
    first = part["box"]["first"]
    spread = softmax(sides[picked, first : first + 4 * bins].reshape(-1, 4, bins))
    points, stride = grid_points(part["levels"], picked, offset_strides_px=tuple(params["point"]))
    ltrb = (spread @ np.arange(bins, dtype=np.float32)) * stride
    return distances_to_xyxy(points, ltrb), scores, class_ids
