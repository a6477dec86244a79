"""Precision maps that teach the cost model what groups and boundaries are worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avq.types import AnyArray
from avq_mixed.groups import Group


def random_maps(groups: Sequence[Group], count: int, seed: int) -> list[AnyArray]:
    """(groups,) bool maps from nearly float to nearly INT8, three designs in turns.

    Runs of neighbours, as real plans have; the same with depthwise convolutions float, as good plans have;
    and every group by itself, which has the most boundaries.
    """
    rng = np.random.default_rng(seed)
    mixing = np.array([g.kind != "depthwise" for g in groups], bool)
    maps = []
    for index in range(count):
        share = (index + 0.5) / count
        longest = 1 if index % 3 == 2 else max(2, len(groups) // 6)
        run = int(rng.integers(1, longest + 1))
        blocks = rng.random(-(-len(groups) // run)) < share
        drawn = np.repeat(blocks, run)[: len(groups)]
        maps.append(drawn & mixing if index % 3 == 1 else drawn)
    return maps
