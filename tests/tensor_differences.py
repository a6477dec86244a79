"""Compare named tensors of two runs within tolerances: a helper of tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avq.compare import Difference
from avq.errors import DataError
from avq.types import AnyArray


def compare_tensors(
    a: Mapping[str, AnyArray],
    b: Mapping[str, AnyArray],
    *,
    atol: float = 0.0,
    rtol: float = 0.0,
    frame: int = 0,
    camera: str = "",
) -> tuple[Difference, ...]:
    """Return one Difference per tensor that differs by more than ``atol + rtol * |b|`` anywhere.

    Its field names the worst element, ``note`` counts the differing ones. A missing tensor, another shape and NaN are
    differences.

    Raises:
        DataError: there is no element to compare.
    """
    if not any(np.size(array) for array in (*a.values(), *b.values())):
        raise DataError("there are no tensor elements to compare", fix="give at least one")
    differences: list[Difference] = []
    for name in sorted(set(a) | set(b)):
        worst = _tensor_difference(name, a.get(name), b.get(name), atol, rtol)
        if worst is not None:
            differences.append(Difference(frame, camera, *worst))
    return tuple(differences)


def _tensor_difference(
    name: str, a: AnyArray | None, b: AnyArray | None, atol: float, rtol: float
) -> tuple[str, Any, Any, str] | None:
    if a is None or b is None or a.shape != b.shape:
        in_a, in_b = (None if array is None else list(array.shape) for array in (a, b))
        return name, in_a, in_b, "missing" if a is None or b is None else "another shape"
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(wide_a == wide_b, 0.0, np.abs(wide_a - wide_b))  # inf equals inf
        size = np.where(np.isfinite(wide_b), np.abs(wide_b), 0.0)  # an infinite reference has no tolerance
        differs = ~(apart <= atol + rtol * size)
    if not differs.any():
        return None
    ranked = np.where(differs, np.nan_to_num(apart, nan=np.inf, posinf=np.inf), -1.0)
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(ranked)), a.shape))
    note = f"{int(differs.sum())} of {differs.size} values differ, worst by {apart[worst]:.4g}"
    return f"{name}[{','.join(map(str, worst))}]", wide_a[worst].item(), wide_b[worst].item(), note
