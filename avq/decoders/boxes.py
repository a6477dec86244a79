"""Box arithmetic that several head families share. Boxes are float32, network-input pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from avq.decoders.structure import head_reasons, input_size_px
from avq.errors import ModelError
from avq.types import F32, I64, AnyArray, DecoderSpec, GraphView, PreprocessSpec, RawOutputs
from avq.types.preprocess import PRESETS

Candidates = tuple[F32, F32, I64]

_LARGEST_EXPONENT = 20.0


def nothing() -> Candidates:
    return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)


def output(raw: RawOutputs, name: str) -> AnyArray:
    """One raw output by name.

    Raises:
        ModelError: the engine did not give it.
    """
    try:
        return raw[name]
    except KeyError:
        seen = ", ".join(sorted(raw)) or "no outputs"
        raise ModelError(
            f"the head needs the output '{name}'", seen=seen, fix="build the bundle again from this model"
        ) from None


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x)), without overflow."""
    y: F32 = 0.5 * (np.tanh(0.5 * x) + 1.0)
    return y


def logit(probability: float) -> float:
    """The x whose sigmoid is ``probability``; thresholds are compared before the sigmoid."""
    p = min(max(probability, 1e-7), 1 - 1e-7)
    return float(np.log(p / (1 - p)))


def softmax(x: F32, axis: int = -1) -> F32:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    y: F32 = e / e.sum(axis=axis, keepdims=True)
    return y


def grown(x: F32) -> F32:
    """exp(x) for sizes; beyond any picture it stays finite."""
    y: F32 = np.exp(np.minimum(x, _LARGEST_EXPONENT))
    return y


def centre_to_xyxy(cxcywh: F32) -> F32:
    """(N, 4) centre and size to corners."""
    half = cxcywh[:, 2:] * 0.5
    return np.concatenate([cxcywh[:, :2] - half, cxcywh[:, :2] + half], axis=1)


def distances_to_xyxy(points: F32, ltrb: F32) -> F32:
    """(N, 2) points and (N, 4) distances to left, top, right and bottom."""
    return np.concatenate([points - ltrb[:, :2], points + ltrb[:, 2:]], axis=1)


def best_classes(rows: F32, threshold: float) -> tuple[I64, F32, I64]:
    """Rows of (N, C) whose best class reaches ``threshold``: their index, score and class."""
    best = rows.argmax(axis=1)
    scores = rows[np.arange(len(rows)), best]
    keep = np.flatnonzero(scores >= threshold)
    return keep, scores[keep], best[keep]


def best_classes_planes(planes: F32, threshold: float) -> tuple[I64, F32, I64]:
    """The same for (C, N): the maximum runs along the contiguous axis, the class only where it matters."""
    top = planes.max(axis=0)
    keep = np.flatnonzero(top >= threshold)
    return keep, top[keep], planes[:, keep].argmax(axis=0)


def points_of(
    levels: Sequence[Sequence[int]],
    rows: I64,
    *,
    offset_cells: float = 0.0,
    offset_strides_px: tuple[float, float] = (0.0, 0.0),
    anchors: int = 1,
) -> tuple[F32, F32]:
    """Points (n, 2) xy in pixels and strides (n, 1) of the picked rows.

    Args:
        levels: [height, width, stride_px] per level, in the order of the rows.
        rows: indices; rows run level by level, cell by cell, anchor by anchor.
        offset_cells: the point of cell g is (g + offset_cells) * stride ...
        offset_strides_px: ... + a * stride + b pixels, for families that place it elsewhere.
        anchors: rows per cell.
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


def in_pixels(boxes: F32, params_normalised: bool, size_px: Sequence[int]) -> F32:
    """Boxes in 0..1 scaled to (width, height); others unchanged."""
    if not params_normalised:
        return boxes
    width, height = size_px
    return boxes * np.array([width, height, width, height], np.float32)


def finished(boxes: F32, scores: F32, class_ids: AnyArray) -> Candidates:
    return (
        np.ascontiguousarray(boxes, np.float32),
        np.ascontiguousarray(scores, np.float32),
        np.asarray(class_ids, np.int64),
    )


# What every built-in head family has in common.


class HeadFamily:
    """Defaults of the ``Decoder`` protocol; a family adds ``recognise`` and ``candidates``."""

    family: str = ""
    nms_in_graph: bool = False
    preset_names: tuple[str, ...] = ()

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """The bare head layers and all after them, with reasons."""
        return head_reasons(graph, spec.family)

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        """Published preprocessing at the graph's input size; empty when the input is no picture."""
        size = input_size_px(graph)
        return [] if size is None else [PRESETS[name](*size) for name in self.preset_names]
