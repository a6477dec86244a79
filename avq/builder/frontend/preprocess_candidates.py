"""Preprocessings to try for a network: those its family is published with, and the usual variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from avq.preprocess import spec_named, spec_text
from avq.types import F64, PreprocessSpec

# Published with detectors; the first of those with nearly equal values stands for the others.
_NUMBERS = {
    "RGB": ("0..1", "0..255", "-1..1", "imagenet", "mean=123/117/104", "mean=127.5,std=128", "mean=127,std=128",
            "mean=123.675/116.28/103.53,std=58.395/57.12/57.375"),
    "BGR": ("0..1", "0..255", "-1..1", "imagenet", "mean=104/117/123", "mean=127.5,std=128", "mean=127,std=128",
            "mean=103.53/116.28/123.675,std=57.375/57.12/58.395"),
}  # fmt: skip
_GEOMETRIES = (
    "center-letterbox-114",
    "top-left-letterbox-114",
    "stretch",
    "center-letterbox-0",
    "top-left-letterbox-0",
    "center-letterbox-128",
    "crop",
)
# Values that differ by 1 % of the range give the same boxes: (x - 127) / 128 and (x - 127.5) / 127.5.
_SAME_VALUES = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """A preprocessing to try.

    Attributes:
        published: whether the family's authors train with it.
        twins: candidates in the same geometry with values within 1 % of the range; not run.
    """

    spec: PreprocessSpec
    published: bool
    twins: tuple[PreprocessSpec, ...] = ()

    @property
    def label(self) -> str:
        """The text that ``--preprocess`` takes."""
        return spec_text(self.spec)

    @property
    def values(self) -> str:
        """Lowest and highest input value, over the channels."""
        low, high = _ends(self.spec)
        return f"{low.min() + 0.0:.3g}..{high.max() + 0.0:.3g}"


def variants(
    published: Sequence[PreprocessSpec],
    size_px: tuple[int, int],
    *,
    likely_max: float | None = None,
    bytes_only: bool = False,
) -> list[Candidate]:
    """Return published preprocessings, then RGB/BGR and the usual number ranges in the first one's geometry.

    Args:
        published: most likely first; empty for a family that publishes none.
        size_px: (width, height) of the network input.
        likely_max: 255.0 or 1.0 for a graph that seems to normalise pictures itself: the published ones are taken
            from 0 to this number.
        bytes_only: the input is uint8: only geometry and order vary.

    Returns:
        Candidates with distinct inputs.
    """
    first = published[0] if published else spec_named(f"{_GEOMETRIES[0]},RGB,0..1", *size_px)
    known = list(published) if likely_max is None else [_up_to(spec, likely_max) for spec in published]
    usual = [(order, text) for order, texts in _NUMBERS.items() for text in texts]
    twins = [_with_numbers(spec, order, text) for spec in known for order, text in usual]
    others = [one for one in twins if any(_nearly_equal(one, spec) for spec in known)]
    others += [_with_numbers(first, order, text) for order, text in usual]
    listed = [(spec, True) for spec in known] + [(spec, False) for spec in others]
    return _distinct([(_up_to(spec, 255.0), is_known) for spec, is_known in listed] if bytes_only else listed)


def geometries(chosen: Candidate) -> list[Candidate]:
    """Return the candidate itself, then its channel order and numbers in the usual geometries, with its twins."""
    first = chosen.spec
    listed = [first, *chosen.twins]
    for geometry in _GEOMETRIES:
        for spec in (first, *chosen.twins):
            numbers = spec_text(spec).partition(",")[2]
            listed.append(spec_named(f"{geometry},{numbers}", first.width_px, first.height_px))
    return _distinct([(spec, False) for spec in listed])


def _with_numbers(spec: PreprocessSpec, order: str, text: str) -> PreprocessSpec:
    numbers = spec_named(f"stretch,{order},{text}", spec.width_px, spec.height_px)
    return replace(numbers, resize=spec.resize, anchor=spec.anchor, pad_value=spec.pad_value)


def _up_to(spec: PreprocessSpec, most: float) -> PreprocessSpec:
    return replace(spec, scale=most / 255.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def _distinct(listed: Sequence[tuple[PreprocessSpec, bool]]) -> list[Candidate]:
    """Candidates in that order; specs with nearly equal values become twins of the first."""
    kept: list[Candidate] = []
    for spec, published in listed:
        twin_of = next((i for i, one in enumerate(kept) if _nearly_equal(one.spec, spec)), None)
        if twin_of is None:
            kept.append(Candidate(spec, published))
            continue
        first = kept[twin_of]
        if all(spec_text(spec) != spec_text(one) for one in (first.spec, *first.twins)):
            kept[twin_of] = replace(first, twins=(*first.twins, spec))
    return kept


def _nearly_equal(a: PreprocessSpec, b: PreprocessSpec) -> bool:
    return _geometry(a) == _geometry(b) and same_numbers(a, b)


def same_numbers(a: PreprocessSpec, b: PreprocessSpec) -> bool:
    """Whether two preprocessings have one channel order, and values that differ by at most 1 % of the range."""
    if a.channel_order != b.channel_order:
        return False
    (low_a, high_a), (low_b, high_b) = _ends(a), _ends(b)
    limit = _SAME_VALUES * np.abs(high_a - low_a)
    return bool(np.all(np.abs(low_a - low_b) <= limit) and np.all(np.abs(high_a - high_b) <= limit))


def _geometry(spec: PreprocessSpec) -> str:
    return spec_text(spec).partition(",")[0]


def _ends(spec: PreprocessSpec) -> tuple[F64, F64]:
    """Values of a pixel of 0 and of 255, per channel."""
    mean, std = np.asarray(spec.mean, np.float64), np.asarray(spec.std, np.float64)
    return -mean / std, (255.0 * spec.scale - mean) / std
