"""RetinaNet: nine anchors per cell, class logits and box deltas, concatenated or per feature map.

Anchors and deltas as in torchvision (Lin et al., Focal Loss, 2017): sizes 4s * (1, 2^(1/3), 2^(2/3)) cut to whole
pixels, ratios h/w 1/2, 1, 2, ratio by ratio, rounded corners, at the cell's corner; centre deltas in anchor sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avq.decoders.boxes import (
    Candidates,
    HeadFamily,
    as_candidates,
    centre_to_xyxy,
    grid_points,
    logit,
    output,
    sigmoid,
)
from avq.decoders.dense import (
    DenseOutput,
    MapOutput,
    by_level,
    dense_output,
    level_params,
    map_outputs,
    ordered_levels,
    rows_of,
)
from avq.types import F32, DecoderSpec, GraphView, RawOutputs

_ANCHORS = 9
_SIZES_IN_STRIDES = 4
_OCTAVES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
_RATIOS = (0.5, 1.0, 2.0)
_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_LARGEST_LOG_SCALE = float(np.log(1000.0 / 16))


class RetinanetDecoder(HeadFamily):
    """Raw class scores and box deltas; the anchors are not in the graph."""

    family = "retinanet"
    preset_names = ("retinanet", "torchvision", "imagenet")

    def recognise(self, graph: GraphView) -> DecoderSpec | None:
        found = _joined(graph) or _separate(graph)
        if found is None:
            return None
        params = {
            **found,
            "weights": list(_WEIGHTS),
            "notes": ["torchvision's anchors are assumed: the graph does not hold them"],
        }
        return DecoderSpec(self.family, params, num_classes=found["classes"])

    def candidates(self, raw: RawOutputs, spec: DecoderSpec, score_threshold: float) -> Candidates:
        parts = [_decode(raw, part, spec.params, score_threshold) for part in spec.params["parts"]]
        boxes, scores, class_ids = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return as_candidates(boxes, scores, class_ids)


def _is_pair(scores: DenseOutput | MapOutput, box: DenseOutput | MapOutput, box_features: int) -> bool:
    plain = scores.column(0).ops & {"Exp", "Softmax", "Add"}
    return box.features == box_features and box.column(0).raw and not plain


def _joined(graph: GraphView) -> dict[str, Any] | None:
    dense = [dense_output(graph, name) for name in graph.output_names]
    both = [one for one in dense if one is not None and one.anchors == _ANCHORS]
    if len(both) != 2 or len(graph.outputs) != 2:
        return None
    for scores, box in (both, both[::-1]):
        if _is_pair(scores, box, 4):
            return _described(graph, scores, box)
    return None


def _described(graph: GraphView, scores: DenseOutput, box: DenseOutput) -> dict[str, Any]:
    ordered = ordered_levels(graph, scores.name, 3 - scores.feature_axis, scores.levels, _ANCHORS)
    part = {
        "scores": {"output": scores.name, "axis": scores.feature_axis},
        "box": {"output": box.name, "axis": box.feature_axis},
        "levels": level_params(ordered),
        "folded": False,
    }
    return {"parts": [part], "classes": scores.features, "sigmoid": "Sigmoid" in scores.column(0).ops}


def _separate(graph: GraphView) -> dict[str, Any] | None:
    outputs = map_outputs(graph)
    if not outputs or len(outputs) % 2:
        return None
    groups = by_level(outputs)
    parts, widths, done = [], set(), False
    for group in groups:
        pair = _pair(group)
        if pair is None:
            return None
        scores, box = pair
        folded = scores.rows == scores.level.cells
        widths.add(scores.features // _ANCHORS if folded else scores.features)
        done = "Sigmoid" in scores.column(0).ops
        parts.append(
            {
                "scores": scores.params(),
                "box": box.params(),
                "levels": level_params([scores.level]),
                "folded": folded,
            }
        )
    if len(groups) < 2 or len(widths) != 1:
        return None
    return {"parts": parts, "classes": widths.pop(), "sigmoid": done}


def _pair(group: list[MapOutput]) -> tuple[MapOutput, MapOutput] | None:
    if len(group) != 2:
        return None
    for scores, box in (group, group[::-1]):
        folded = scores.rows == scores.level.cells
        fits = scores.features % _ANCHORS == 0 if folded else scores.rows == _ANCHORS * scores.level.cells
        if fits and scores.rows == box.rows and _is_pair(scores, box, 4 * _ANCHORS if folded else 4):
            return scores, box
    return None


def base_anchors(stride_px: int) -> F32:
    """Return (9, 4) cx, cy, w, h in pixels of the anchors of a cell at the origin."""
    sizes = np.trunc(_SIZES_IN_STRIDES * stride_px * np.array(_OCTAVES))
    heights = (np.sqrt(_RATIOS)[:, None] * sizes[None, :]).reshape(-1)
    widths = ((1.0 / np.sqrt(_RATIOS))[:, None] * sizes[None, :]).reshape(-1)
    corners = np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2)
    centres, spans = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return np.concatenate([centres, spans], axis=1).astype(np.float32)


def _decode(
    raw: RawOutputs, part: Mapping[str, Any], params: Mapping[str, Any], threshold: float
) -> Candidates:
    scores_all = rows_of(output(raw, part["scores"]["output"]), part["scores"])
    deltas_all = rows_of(output(raw, part["box"]["output"]), part["box"])
    if part["folded"]:
        scores_all = scores_all.reshape(-1, params["classes"])
        deltas_all = deltas_all.reshape(-1, 4)
    top = scores_all.max(axis=1)
    picked = np.flatnonzero(top >= (threshold if params["sigmoid"] else logit(threshold)))
    scores = top[picked] if params["sigmoid"] else sigmoid(top[picked])
    anchors = _anchors(part["levels"], picked)
    boxes = apply_deltas(anchors, deltas_all[picked], params["weights"])
    return boxes, scores, scores_all[picked].argmax(axis=1)


def _anchors(levels: Sequence[Sequence[int]], rows: np.ndarray[Any, Any]) -> F32:
    points, strides = grid_points(levels, rows, anchors=_ANCHORS)
    anchors = np.empty((len(rows), 4), np.float32)
    for stride in {int(level[2]) for level in levels}:
        here = strides[:, 0] == stride
        anchors[here] = base_anchors(stride)[rows[here] % _ANCHORS]
    anchors[:, :2] += points
    return anchors


def apply_deltas(anchors: F32, deltas: F32, weights: Sequence[float]) -> F32:
    """Apply deltas to anchors.

    Args:
        anchors: (N, 4) cx, cy, w, h in pixels.
        deltas: (N, 4) dx, dy, dw, dh.
        weights: four divisors of the deltas.

    Returns:
        (N, 4) x0, y0, x1, y1 in pixels.
    """
    shift = deltas / np.asarray(weights, np.float32)
    centres = anchors[:, :2] + shift[:, :2] * anchors[:, 2:]
    sizes = anchors[:, 2:] * np.exp(np.minimum(shift[:, 2:], _LARGEST_LOG_SCALE))
    return centre_to_xyxy(np.concatenate([centres, sizes], axis=1))
