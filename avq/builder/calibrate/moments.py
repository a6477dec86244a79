"""Float sums over activations, in digest order: the same set gives the same bits.

Means and peaks per channel, and Gram matrices of what weighted operators read. Nothing that grows with the number
of pictures is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from avq.builder.calibrate.counting import opencv_on_one_thread
from avq.builder.calibrate.observe import Observer, observe
from avq.builder.calibrate.unfold import Unfold, unfold_of
from avq.builder.pictures.dataset import Item
from avq.errors import CalibrationError
from avq.hookspecs import Engine
from avq.toolbox.rounding import one_blas_thread
from avq.types import F64, AnyArray, GraphView, MomentRequest, PreprocessSpec


@dataclass
class _Sum:
    """One request's answer so far."""

    request: MomentRequest
    unfold: Unfold | None
    total: F64 | None = None
    count: int = 0

    def add(self, values: AnyArray) -> None:
        if self.request.kind == "peak":
            part = _per_channel(np.maximum.reduce, np.abs(values))
            self.total = part if self.total is None else np.maximum(self.total, part)
            self.count = 1
            return
        if self.unfold is not None:
            rows = self.unfold.rows(values)
            part, counted = (rows.transpose(0, 2, 1) @ rows).astype(np.float64), rows.shape[1]
        else:
            part = _per_channel(np.add.reduce, values)
            counted = values.size // max(part.size, 1)
        self.count += counted
        if self.total is None:
            self.total = part
        else:
            self.total += part

    def result(self) -> F64:
        assert self.total is not None, "observe() gives every tensor on every picture"
        return self.total / max(self.count, 1)


@dataclass
class _Sums:
    """Every request on one tensor."""

    name: str
    sums: list[_Sum] = field(default_factory=list)

    def add(self, values: AnyArray, item: Item) -> None:
        if values.ndim < 2:
            raise CalibrationError(
                f"'{self.name}' has no channels",
                seen=f"shape {values.shape}",
                fix="ask for (1, C, ...) tensors",
            )
        if not np.isfinite(values).all():
            raise CalibrationError(
                f"'{self.name}' holds NaN or Inf",
                seen=f"on {item.path.name}",
                fix="check the model and its preprocessing",
            )
        for one in self.sums:
            one.add(values)


def moments(
    model: onnx.ModelProto,
    view: GraphView | None,
    requests: Sequence[MomentRequest],
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    engine: Engine,
    memory_limit_mb: int = 200,
    optimise: bool = True,
) -> Mapping[str, F64]:
    """Answers by the requests' keys, over all pictures and positions; shapes as :class:`MomentRequest` says.

    Gram matrices are of at most ``unfold.ROWS_PER_PICTURE`` rows of each picture.

    Args:
        view: of ``model``; needed for Gram matrices only.

    Raises:
        CalibrationError: no pictures, unknown tensors, a tensor without channels, NaN or Inf, an operator
            that has no Gram matrix.
        DataError: a picture cannot be read.
    """
    if not items:
        raise CalibrationError(
            "there are no pictures to average over", fix="give --data a folder of pictures"
        )
    wanted: dict[str, _Sums] = {}
    for request in dict.fromkeys(requests):
        unfold = unfold_of(view, request.reader) if request.kind == "gram" and view is not None else None
        wanted.setdefault(request.tensor, _Sums(request.tensor)).sums.append(_Sum(request, unfold))
    if not wanted:
        return {}
    observer = Observer(observe(model, list(wanted), memory_limit_mb), engine, spec, optimise=optimise)
    try:
        with opencv_on_one_thread(), one_blas_thread():
            for item, name, values in observer.values(sorted(items, key=lambda item: item.sha256)):
                wanted[name].add(values, item)
    finally:
        observer.close()
    return {one.request.key: one.result() for sums in wanted.values() for one in sums.sums}


def _per_channel(reduce: Callable[..., AnyArray], values: AnyArray) -> F64:
    axes = (0, *range(2, values.ndim))
    reduced: F64 = np.asarray(reduce(values, axis=axes, dtype=np.float64))
    return reduced
