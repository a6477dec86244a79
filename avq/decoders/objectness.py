"""Rows that carry an objectness next to their class scores: score = objectness * best class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avq.decoders.boxes import logit, sigmoid
from avq.types import F32, I64


def objectness_rows(table: F32, params: Mapping[str, Any], threshold: float) -> tuple[I64, F32, F32, I64]:
    """Rows that can reach ``threshold``: their index, first four columns, score and class.

    Objectness is compared before anything else is read: no class score exceeds 1.

    Args:
        table: (N, 5 + C), or (5 + C, N) where ``params["planes"]``.
        params: "sigmoid" and "class_sigmoid" tell what the graph did already.
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
