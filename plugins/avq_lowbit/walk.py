"""The order of bit reductions: always the one that adds the least error per byte it saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.types import F64


def walk(damage: F64, size: F64) -> list[tuple[int, ...]]:
    """Every state from all groups at their first width to all at their last, one reduction at a time.

    Args:
        damage: (groups, widths) predicted error of each group alone at each width; inf where a width is not to
            be used by that group.
        size: (groups, widths) bytes, falling along a row.

    Returns states: per group an index into the widths. Errors of groups add, as independent noise does. A
    reduction that makes nothing worse comes first; among equals the earlier group.
    """
    groups, widths = damage.shape
    state = np.zeros(groups, int)
    path = [tuple(state.tolist())]
    while True:
        here = np.arange(groups)
        following = np.minimum(state + 1, widths - 1)
        added = np.maximum(damage[here, following] - damage[here, state], 0.0)
        saved = size[here, state] - size[here, following]
        price = np.where((state < widths - 1) & np.isfinite(added), added / np.maximum(saved, 1e-9), np.inf)
        best = int(np.argmin(price))
        if not np.isfinite(price[best]):
            return path
        state[best] += 1
        path.append(tuple(state.tolist()))


def spaced(sizes: Sequence[float], count: int) -> list[int]:
    """At most ``count`` indices of falling ``sizes``, evenly apart in the logarithm; both ends included."""
    logs = np.log(np.asarray(sizes, np.float64))
    wanted = np.linspace(logs[0], logs[-1], count)
    return sorted({int(np.argmin(np.abs(logs - w))) for w in wanted})
