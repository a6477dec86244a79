"""Flat scales of an entry, shaped for their tensor; the operator tells the axis where a file does not."""

from __future__ import annotations

import numpy as np

from avq.builder.sidefiles.encoding import Encoding
from avq.builder.sidefiles.grids import UnfitError
from avq.builder.sidefiles.match import Names
from avq.types import F32, I64, AnyArray

Spread = tuple[F32, I64, "int | None"]


def spread_over(entry: Encoding, tensor: str, names: Names) -> Spread:
    """(scale, offset, axis) as a plan wants them for ``tensor``.

    Raises UnfitError AVQ-Q56 when their number is not that of its channels or blocks.
    """
    if entry.layout == "tensor":
        return np.asarray(entry.scale[0], np.float32), np.asarray(entry.offset[0], np.int64), None
    shape = names.graph.shape(tensor)
    if shape is None:
        raise UnfitError("AVQ-Q56", f"{len(entry.scale)} scales, shape not known")
    if entry.layout == "channel":
        return _per_channel(entry, shape, _axis(entry.axis, names.weight_axes.get(tensor), shape))
    return _per_block(entry, shape, names.weight_axes.get(tensor))


def _axis(said: int | None, implied: int | None, shape: tuple[int, ...]) -> int:
    axis = implied if said is None else said
    if axis is None:
        raise UnfitError("AVQ-Q56", "no operator tells the channel axis")
    if not -len(shape) <= axis < len(shape):
        raise UnfitError("AVQ-Q56", f"axis {axis} of shape {shape}")
    return axis % len(shape)


def _per_channel(entry: Encoding, shape: tuple[int, ...], axis: int) -> Spread:
    if len(entry.scale) != shape[axis]:
        raise UnfitError("AVQ-Q56", f"{len(entry.scale)} scales for {shape[axis]} channels along axis {axis}")
    return np.asarray(entry.scale, np.float32), np.asarray(entry.offset, np.int64), axis


def _per_block(entry: Encoding, shape: tuple[int, ...], channels: int | None) -> Spread:
    """Blocks along one axis; 2.x nests its scales in the tensor's rank, 1.x lists them by output channel."""
    assert entry.block_size is not None
    if entry.axis is not None:
        axis = _axis(entry.axis, None, shape)
        nested = entry.shape
    else:
        axis = 1 - _axis(None, channels, shape[:2])
        nested = (shape[1 - axis], -(-shape[axis] // entry.block_size))
    wanted = tuple(-(-n // entry.block_size) if i == axis else n for i, n in enumerate(shape))
    if int(np.prod(nested)) != len(entry.scale):
        raise UnfitError("AVQ-Q56", f"{len(entry.scale)} scales for blocks {wanted}")
    scale, offset = (
        _nested(np.asarray(values), nested, wanted, turned=entry.axis is None and axis == 0)
        for values in (entry.scale, entry.offset)
    )
    return scale.astype(np.float32), offset.astype(np.int64), axis


def _nested(values: AnyArray, nested: tuple[int, ...], wanted: tuple[int, ...], *, turned: bool) -> AnyArray:
    array = values.reshape(nested)
    array = array.T if turned else array
    array = array.reshape(*array.shape, *[1] * (len(wanted) - array.ndim))
    if array.ndim != len(wanted) or any(n not in (1, w) for n, w in zip(array.shape, wanted, strict=True)):
        raise UnfitError("AVQ-Q56", f"scales of shape {array.shape} for blocks {wanted}")
    full: AnyArray = np.broadcast_to(array, wanted).copy()
    return full
