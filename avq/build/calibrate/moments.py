"""Per-channel means of activations, summed in digest order: the same set gives the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from avq.build.calibrate.observe import Observer, observe
from avq.build.dataset import Item
from avq.errors import CalibrationError
from avq.hookspecs import Engine
from avq.types import F64, AnyArray, PreprocessSpec


def channel_means(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    engine: Engine,
    memory_limit_mb: int = 200,
    optimise: bool = True,
) -> Mapping[str, F64]:
    """Mean of every channel of (1, C, ...) tensors over all pictures and positions: (C,) float64 each.

    Raises:
        CalibrationError: no pictures, unknown tensors, a tensor without channels, NaN or Inf.
        DataError: a picture cannot be read.
    """
    if not items:
        raise CalibrationError(
            "there are no pictures to average over", fix="give --data a folder of pictures"
        )
    observer = Observer(observe(model, tensors, memory_limit_mb), engine, spec, optimise=optimise)
    sums: dict[str, F64] = {}
    counts: dict[str, int] = {}
    try:
        for item, name, values in observer.values(sorted(items, key=lambda item: item.sha256)):
            total = _channel_sums(name, values, item)
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + values.size // max(total.size, 1)
    finally:
        observer.close()
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _channel_sums(name: str, values: AnyArray, item: Item) -> F64:
    if values.ndim < 2:
        raise CalibrationError(
            f"'{name}' has no channels", seen=f"shape {values.shape}", fix="ask for (1, C, ...) tensors"
        )
    axes = (0, *range(2, values.ndim))
    total = np.asarray(np.sum(values, axis=axes, dtype=np.float64))
    if not np.isfinite(total).all():
        raise CalibrationError(
            f"'{name}' holds NaN or Inf",
            seen=f"on {item.path.name}",
            fix="check the model and its preprocessing",
        )
    return total
