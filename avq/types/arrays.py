"""Frozen dataclasses that hold arrays: exact equality, a matching hash, read-only fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]

Scalar = TypeVar("Scalar", bound=np.generic)


def read_only(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return a read-only view of ``array``, without a copy; the caller's own array stays writable.

    Args:
        array: any shape and dtype. An array that is read-only already comes back as it is.

    Returns:
        An array of the same shape and dtype that shares its memory.
    """
    if not array.flags.writeable:
        return array
    view: npt.NDArray[Scalar] = array.view()
    view.flags.writeable = False
    return view


def read_only_copy(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """Return a read-only array that later writes to ``array`` do not change.

    Args:
        array: any shape and dtype; small, as it is copied. A read-only array comes back as it is.

    Returns:
        An array of the same shape and dtype.
    """
    own = np.array(array) if array.flags.writeable else np.asarray(array)
    own.flags.writeable = False
    return own


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRecord:
    """Base of frozen dataclasses with array fields. Declare subclasses with ``eq=False`` to keep its equality.

    Two records are equal when they are of one class and all fields are: arrays in dtype, shape and every value,
    with NaN equal to NaN. Equal records have equal hashes; the hash reads no array values, so it is cheap. Pickling
    calls the constructor, so arrays are read-only on the other side, too.
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def __hash__(self) -> int:
        return hash((type(self), *(_hashable(getattr(self, f.name)) for f in fields(self))))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def _freeze(self, *names: str, copy: bool = False) -> None:
        """Make the named fields read-only: arrays, or mappings whose values are arrays."""
        freeze = read_only_copy if copy else read_only
        for name in names:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                frozen: Any = {
                    key: freeze(each) if isinstance(each, np.ndarray) else each for key, each in value.items()
                }
            else:
                frozen = freeze(value)
            object.__setattr__(self, name, frozen)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _same_arrays(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (_is_nan(a) and _is_nan(b))


def _same_arrays(a: AnyArray, b: AnyArray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")


def _hashable(value: Any) -> Any:
    """Reduce a field to something hashable that is equal for equal fields."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape
    if isinstance(value, Mapping):
        return frozenset(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_hashable(each) for each in value)
    return "nan" if _is_nan(value) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))
