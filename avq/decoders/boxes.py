"""Box arithmetic shared by the head families, and their base class. Boxes are float32, in network-input pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from avq.decoders.structure import head_reasons, input_size_px
from avq.errors import ModelError
from avq.types import F32, I64, AnyArray, DecoderSpec, GraphView, PreprocessSpec, RawOutputs
from avq.types.preprocess import PRESETS

#: Boxes (N, 4) x0, y0, x1, y1, scores (N,) and class ids (N,).
Candidates = tuple[F32, F32, I64]

_LARGEST_EXPONENT = 20.0


def no_candidates() -> Candidates:
    """Return empty candidates."""
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)


def output(raw: RawOutputs, name: str) -> AnyArray:
    """Return one raw output by name.

    Raises:
        ModelError: the engine has no such output.
    """
    try:
        return raw[name]
    except KeyError:
        seen = ", ".join(sorted(raw)) or "no outputs"
        raise ModelError(
            f"the model has no output '{name}', which the decoder needs",
            seen=seen,
            fix="build the bundle again from this model",
        ) from None


def sigmoid(x: F32) -> F32:
    """Return 1 / (1 + exp(-x)) of any shape, without overflow."""
    y: F32 = 0.5 * (np.tanh(0.5 * x) + 1.0)
    return y


def logit(probability: float) -> float:
    """Return x with sigmoid(x) = ``probability``: thresholds are compared before the sigmoid."""
    p = min(max(probability, 1e-7), 1 - 1e-7)
    return float(np.log(p / (1 - p)))


def softmax(x: F32, axis: int = -1) -> F32:
    """Return the softmax along ``axis``, of the shape of ``x``."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    y: F32 = e / e.sum(axis=axis, keepdims=True)
    return y


def clipped_exp(x: F32) -> F32:
    """Return exp(x) for box sizes, clipped to a finite value above any picture size."""
    y: F32 = np.exp(np.minimum(x, _LARGEST_EXPONENT))
    return y


def centre_to_xyxy(cxcywh: F32) -> F32:
    """Convert (N, 4) cx, cy, w, h to (N, 4) x0, y0, x1, y1."""
    half = cxcywh[:, 2:] * 0.5
    return np.concatenate([cxcywh[:, :2] - half, cxcywh[:, :2] + half], axis=1)


def to_xyxy(boxes: F32, form: str) -> F32:
    """Convert (N, 4) boxes of a format of ``dense.box_format``, or "yxyx", to (N, 4) x0, y0, x1, y1."""
    if form == "cxcywh":
        return centre_to_xyxy(boxes)
    if form == "xywh":
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return boxes[:, [1, 0, 3, 2]] if form == "yxyx" else boxes


def distances_to_xyxy(points: F32, ltrb: F32) -> F32:
    """Convert (N, 2) points and (N, 4) distances to left, top, right, bottom to (N, 4) x0, y0, x1, y1."""
    return np.concatenate([points - ltrb[:, :2], points + ltrb[:, 2:]], axis=1)


def best_classes(rows: F32, threshold: float) -> tuple[I64, F32, I64]:
    """Select the rows of (N, C) scores whose best class reaches ``threshold``.

    Returns:
        Indices (K,), scores (K,) and classes (K,).
    """
    best = rows.argmax(axis=1)
    scores = rows[np.arange(len(rows)), best]
    keep = np.flatnonzero(scores >= threshold)
    return keep, scores[keep], best[keep]


def best_classes_planes(planes: F32, threshold: float) -> tuple[I64, F32, I64]:
    """Select columns of (C, N) scores as ``best_classes`` does; the maximum runs along the contiguous axis."""
    top = planes.max(axis=0)
    keep = np.flatnonzero(top >= threshold)
    return keep, top[keep], planes[:, keep].argmax(axis=0)


def grid_points(
    levels: Sequence[Sequence[int]],
    rows: I64,
    *,
    offset_cells: float = 0.0,
    offset_strides_px: tuple[float, float] = (0.0, 0.0),
    anchors: int = 1,
) -> tuple[F32, F32]:
    """Return the grid points of selected rows.

    The point of cell g is (g + offset_cells) * stride + a * stride + b pixels.

    Args:
        levels: [height, width, stride_px] per level, in the order of the rows.
        rows: (n,) indices; rows run level by level, cell by cell, anchor by anchor.
        offset_cells: offset in cells.
        offset_strides_px: (a, b): offset in strides and in pixels.
        anchors: rows per cell.

    Returns:
        Points (n, 2) x, y in network-input pixels, and strides (n, 1) in pixels.
    """
    sizes = np.asarray(levels, np.int64)
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    cell = rows // anchors
    level = np.searchsorted(ends, cell, side="right")
    within = cell - np.concatenate([[0], ends])[level]
    y, x = np.divmod(within, sizes[level, 1])
    stride = sizes[level, 2].astype(np.float32)[:, None]
    grid = np.stack([x, y], axis=1).astype(np.float32)
    a, b = offset_strides_px
    return (grid + np.float32(offset_cells)) * stride + np.float32(a) * stride + np.float32(b), stride


def to_pixels(boxes: F32, normalised: bool, size_px: Sequence[int]) -> F32:
    """Scale (N, 4) boxes in 0..1 to (width, height) pixels; boxes that are not normalised stay unchanged."""
    if not normalised:
        return boxes
    width, height = size_px
    return boxes * np.array([width, height, width, height], np.float32)


def as_candidates(boxes: F32, scores: F32, class_ids: AnyArray) -> Candidates:
    """Convert boxes (N, 4), scores (N,) and class ids (N,) to contiguous arrays of the types of ``Candidates``."""
    return (
        np.ascontiguousarray(boxes, np.float32),
        np.ascontiguousarray(scores, np.float32),
        np.asarray(class_ids, np.int64),
    )


class HeadFamily:
    """Base class of the built-in head families; a family adds ``recognise`` and ``candidates``."""

    family: str = ""
    nms_in_graph: bool = False
    preset_names: tuple[str, ...] = ()

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """Return the bare head layers and all nodes after them, with reasons to keep them float."""
        return head_reasons(graph, spec.family)

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        """Return published preprocessing at the graph's input size; empty when the input is not a picture."""
        size = input_size_px(graph)
        return [] if size is None else [PRESETS[name](*size) for name in self.preset_names]

    def contradiction(self, raw: RawOutputs, spec: DecoderSpec) -> str:
        """Return why the raw outputs of a picture cannot have the layout of ``spec``, or ""."""
        return ""
