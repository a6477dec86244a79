"""Finds the outputs whose rows a graph chose: other choices are put in, and it is seen which outputs turn round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

import numpy as np
import onnx

from avq.builder.choices import Choice, choices_of, given_name, with_given, with_told
from avq.hookspecs import Session
from avq.measure.fidelity import sqnr_db
from avq.measure.golden import ChosenRows
from avq.types import U8, AnyArray

#: What is summed over rows in another order differs by rounding.
_SAME_DB = 60.0


def chosen_rows(model: bytes, opened: Callable[[bytes], Session], pictures: Iterable[U8]) -> ChosenRows:
    """The outputs of ``model`` whose rows TopK or NonMaxSuppression put in order.

    Where one choice follows another, the last one orders the rows.

    Args:
        model: ONNX, float.
        opened: opens a model; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.
    """
    first, second = onnx.load_model_from_string(model), onnx.load_model_from_string(model)
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    choices = [choice for choice in choices_of(first) if choice.ordered_axis is not None]
    places: dict[str, tuple[int, int]] = {}
    if not choices:
        return ChosenRows()
    with closing(opened(with_told(first, choices).SerializeToString())) as teller:
        answers = [(tensor, _copied(teller.run({picture: tensor}))) for tensor in pictures]
    ranks = {given_name(choice.name): answers[0][1][choice.indices].ndim for choice in choices}
    with closing(opened(with_given(second, choices, ranks).SerializeToString())) as follower:
        for tensor, told in answers:
            feeds = {picture: tensor, **{given_name(one.name): told[one.indices] for one in choices}}
            plain = _copied(follower.run(feeds))
            for number, choice in enumerate(choices):
                turned = follower.run({**feeds, **_turned(choice, told)})
                for name in outputs:
                    if (axis := _turned_axis(plain[name], turned[name])) is not None:
                        places[name] = (axis, number)
    return ChosenRows(places)


def _copied(outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: np.array(value) for name, value in outputs.items()}


def _turned(choice: Choice, told: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The last one first."""
    axis = choice.ordered_axis or 0
    return {given_name(choice.name): np.ascontiguousarray(np.flip(told[choice.indices], axis))}


def _turned_axis(plain: AnyArray, turned: AnyArray) -> int | None:
    """The axis along which ``turned`` holds the slices of ``plain`` in another order; None where nothing moved."""
    if plain.shape != turned.shape or np.array_equal(plain, turned, equal_nan=plain.dtype.kind == "f"):
        return None
    for axis in range(plain.ndim):
        if plain.shape[axis] > 1 and (_flipped(plain, turned, axis) or _same_slices(plain, turned, axis)):
            return axis
    return None


def _flipped(plain: AnyArray, turned: AnyArray, axis: int) -> bool:
    if not (np.isfinite(plain).all() and np.isfinite(turned).all()):
        return False
    return sqnr_db(np.flip(plain, axis), turned) >= _SAME_DB > sqnr_db(plain, turned)


def _same_slices(plain: AnyArray, turned: AnyArray, axis: int) -> bool:
    """The same ones to the last bit, where padding or what else stays in its place."""
    ours, theirs = (
        sorted(np.ascontiguousarray(one).tobytes() for one in np.moveaxis(array, axis, 0))
        for array in (plain, turned)
    )
    return ours == theirs
