"""Count the distinct pictures of a set: a range measured on one scene, or on none, does not hold for others.

Two pictures are nearly the same when most of their 8x8 blocks have the same pattern, mirrored or not. Patterns are
compared after removing mean and contrast, so brightness, contrast and compression make little difference. Share of
blocks alike, measured: one frame as JPEG of quality 10, brightened by 80, with gamma 2.2 or mirrored 0.90 to 1.0;
frames of one drive one second apart at most 0.84; pictures of COCO, of streets and drawn scenes at most 0.41.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from avq.errors import DataError
from avq.types import F32, U8

#: Fewest distinct pictures that calibrate.
MIN_DISTINCT = 8
_SIDE = 64
_BLOCK = 8
#: Standard deviation, in grey levels, of a block with a pattern.
_PATTERN_LEVELS = 2.0
#: Fewest blocks with a pattern; with fewer a picture shows nothing.
_MIN_BLOCKS = 4
_SAME_PATTERN = 0.7
_SAME_PICTURE = 0.88
#: Correlation of the block means that any two variants of one picture have.
_SAME_LAYOUT = 0.6


@dataclass(frozen=True, slots=True)
class Variety:
    """How many different pictures a set has.

    Attributes:
        pictures: examined ones.
        one_colour: of them, those that show nothing.
        near_identical: nearly the same as another, or its mirror image.
    """

    pictures: int
    one_colour: int
    near_identical: int

    @property
    def distinct(self) -> int:
        return self.pictures - self.one_colour - self.near_identical

    def summary(self) -> str:
        """One line; empty for a set whose pictures all differ."""
        if not self.one_colour and not self.near_identical:
            return ""
        return (
            f"{self.distinct} of {self.pictures} pictures are distinct: {self.one_colour} show one colour, "
            f"{self.near_identical} are nearly the same as another"
        )


NO_PICTURES = Variety(0, 0, 0)


def variety(greys: Iterable[U8]) -> Variety:
    """Compare pictures.

    Args:
        greys: (H, W) uint8 each.
    """
    known = _Known()
    pictures = one_colour = near_identical = 0
    for grey in greys:
        one = _description(grey)
        pictures += 1
        if one.count < _MIN_BLOCKS:
            one_colour += 1
        elif not known.add(one):
            near_identical += 1
    return Variety(pictures, one_colour, near_identical)


def require_distinct(folder: Path, found: Variety) -> None:
    """Raise DataError when a set has fewer than MIN_DISTINCT distinct pictures."""
    if found.distinct >= MIN_DISTINCT:
        return
    raise DataError(
        f"{folder} has too few distinct pictures to calibrate on",
        seen=found.summary() or f"{found.pictures} pictures",
        fix=f"give at least {MIN_DISTINCT} pictures of different scenes; brighter, mirrored or recompressed copies "
        "of one count once",
    )


@dataclass(frozen=True, slots=True)
class _Description:
    """A picture as blocks.

    Attributes:
        means: (64,) float32, mean of each block, normalised over the picture.
        patterns: (64, 64) float32, pixels per block, normalised per block; zero without a pattern.
        count: blocks with a pattern.
    """

    means: F32
    patterns: F32
    count: int


def _description(grey: U8) -> _Description:
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    across = _SIDE // _BLOCK
    blocks = small.reshape(across, _BLOCK, across, _BLOCK).swapaxes(1, 2).reshape(across**2, _BLOCK**2)
    means = blocks.mean(axis=1)
    centred = blocks - means[:, None]
    deviation = np.sqrt((centred**2).mean(axis=1))
    has_pattern = deviation >= _PATTERN_LEVELS
    patterns = np.where(has_pattern[:, None], centred / np.maximum(deviation, 1e-6)[:, None] / _BLOCK, 0.0)
    layout = means - means.mean()
    layout /= max(float(np.linalg.norm(layout)), 1e-6)
    return _Description(layout.astype(np.float32), patterns.astype(np.float32), int(has_pattern.sum()))


def _mirrored(one: _Description) -> _Description:
    across = _SIDE // _BLOCK
    means = one.means.reshape(across, across)[:, ::-1].reshape(-1)
    patterns = one.patterns.reshape(across, across, _BLOCK, _BLOCK)[:, ::-1, :, ::-1]
    return _Description(means, patterns.reshape(one.patterns.shape), one.count)


class _Known:
    """The distinct pictures so far."""

    def __init__(self) -> None:
        self._pictures: list[_Description] = []
        self._means = np.zeros((0, (_SIDE // _BLOCK) ** 2), np.float32)

    def add(self, one: _Description) -> bool:
        """Keep ``one`` unless a known picture is nearly the same; return whether it was kept."""
        for form in (one, _mirrored(one)):
            for index in np.flatnonzero(self._means @ form.means >= _SAME_LAYOUT):
                if _alike(self._pictures[index], form):
                    return False
        self._pictures.append(one)
        self._means = np.vstack([self._means, one.means])
        return True


def _alike(one: _Description, other: _Description) -> bool:
    both = one.patterns.any(axis=1) & other.patterns.any(axis=1)
    if both.sum() < _MIN_BLOCKS:
        return False
    agreement = np.einsum("ij,ij->i", one.patterns[both], other.patterns[both])
    return bool((agreement > _SAME_PATTERN).mean() >= _SAME_PICTURE)
