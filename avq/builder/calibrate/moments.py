"""Moments of activations: means and peaks per channel, Gram matrices of the inputs of weighted operators.

Pictures are summed in the order of their digests, so the same set gives the same bits. Memory does not grow with
the number of pictures. Convolutions are unfolded to matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from avq.builder.calibrate.observe import Observer, observe, opencv_on_one_thread
from avq.builder.pictures.dataset import Item
from avq.errors import CalibrationError
from avq.hookspecs import Engine
from avq.toolbox.rounding import one_blas_thread
from avq.types import F32, F64, I64, AnyArray, GraphView, MomentRequest, NodeView, PreprocessSpec

#: Rows taken from one picture, spread evenly over the output; neighbouring pixels are nearly equal.
ROWS_PER_PICTURE = 256


@dataclass(frozen=True)
class Unfold:
    """Window with which one operator reads its data input.

    Attributes:
        group: groups of channels; 1 for matrix products.
        kernel: (kh, kw), or () for matrix products.
        strides, dilations: one per kernel axis.
        pads: (top, left, bottom, right).
    """

    group: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()

    def rows(self, values: AnyArray, limit: int = ROWS_PER_PICTURE) -> F32:
        """Unfold one picture's tensor into the rows that the operator multiplies with its weights.

        Args:
            values: (1, C, h, w) for convolutions, (..., K) for matrix products.
            limit: largest number of rows, evenly spread.

        Returns:
            (G, rows, K) float32.
        """
        if not self.kernel:
            flat = values.reshape(-1, values.shape[-1])
            return flat[_spread(flat.shape[0], limit)].astype(np.float32)[None]
        top, left, bottom, right = self.pads
        padded = np.pad(values[0], ((0, 0), (top, bottom), (left, right)))
        height, width = (self._outputs(axis, padded.shape[axis + 1]) for axis in (0, 1))
        at = _spread(height * width, limit)
        y, x = self._taps(0, at // width), self._taps(1, at % width)
        patches = padded[:, y[:, :, None], x[:, None, :]]  # (C, rows, kh, kw)
        grouped = patches.reshape(self.group, -1, at.size, y.shape[1] * x.shape[1])
        rows: F32 = grouped.transpose(0, 2, 1, 3).reshape(self.group, at.size, -1).astype(np.float32)
        return rows

    def _outputs(self, axis: int, size: int) -> int:
        reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
        return (size - reach) // self.strides[axis] + 1

    def _taps(self, axis: int, positions: I64) -> I64:
        offsets = np.arange(self.kernel[axis]) * self.dilations[axis]
        taps: I64 = positions[:, None] * self.strides[axis] + offsets
        return taps


def unfold_of(graph: GraphView, name: str) -> Unfold:
    """Return the window with which the node ``name`` reads its data.

    Raises:
        CalibrationError: the operator is no product of an activation with a constant.
    """
    node = graph.node(name)
    if len(node.inputs) < 2 or not graph.is_constant(node.inputs[1]) or graph.is_constant(node.inputs[0]):
        raise _unsupported(node, "its second input is not its constant weight")
    weight = graph.constants[node.inputs[1]]
    if node.op == "MatMul" or (node.op == "Gemm" and not node.attributes.get("transA", 0)):
        if weight.ndim != 2:
            raise _unsupported(node, f"weight of shape {weight.shape}")
        return Unfold()
    if node.op != "Conv" or weight.ndim != 4:
        raise _unsupported(node, f"{node.op}, weight of shape {weight.shape}")
    return _convolution(graph, node, weight.shape[2:])


def _convolution(graph: GraphView, node: NodeView, kernel: Sequence[int]) -> Unfold:
    strides = tuple(node.attributes.get("strides") or (1, 1))
    dilations = tuple(node.attributes.get("dilations") or (1, 1))
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(graph, node, kernel, strides, dilations, upper=auto == "SAME_UPPER")
    else:
        pads = (0, 0, 0, 0) if auto == "VALID" else tuple(node.attributes.get("pads") or (0, 0, 0, 0))
    return Unfold(int(node.attributes.get("group", 1)), tuple(kernel), strides, dilations, pads)


def _same_pads(
    graph: GraphView,
    node: NodeView,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    upper: bool,
) -> tuple[int, ...]:
    shape = graph.shape(node.inputs[0])
    if shape is None:
        raise _unsupported(node, "auto_pad on an input of unknown size")
    before, after = [], []
    for size, reach, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (reach - 1) * dilation + 1 - size, 0)
        small = total // 2
        before.append(small if upper else total - small)
        after.append(total - small if upper else small)
    return (*before, *after)


def _spread(count: int, limit: int) -> I64:
    """Return at most ``limit`` of ``count`` positions, evenly spread."""
    taken = min(count, limit)
    positions: I64 = np.arange(taken, dtype=np.int64) * count // max(taken, 1)
    return positions


def _unsupported(node: NodeView, seen: str) -> CalibrationError:
    return CalibrationError(
        f"there is no Gram matrix of '{node.name}'",
        seen=seen,
        fix="request Conv, Gemm or MatMul with constant weights",
    )


@dataclass
class _Sum:
    """Running sum of one request."""

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
    """Running sums of all requests on one tensor."""

    name: str
    sums: list[_Sum] = field(default_factory=list)

    def add(self, values: AnyArray, item: Item) -> None:
        if values.ndim < 2:
            raise CalibrationError(
                f"'{self.name}' has no channels",
                seen=f"shape {values.shape}",
                fix="request (1, C, ...) tensors",
            )
        if not np.isfinite(values).all():
            raise CalibrationError(
                f"'{self.name}' holds NaN or Inf",
                seen=f"on {item.path.name}",
                fix="check the model and its preprocessing",
            )
        for request_sum in self.sums:
            request_sum.add(values)


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
    """Compute moments over all pictures and positions.

    Gram matrices use at most ROWS_PER_PICTURE rows of each picture.

    Args:
        model: the folded float model.
        view: of ``model``; needed for Gram matrices only.
        requests: moments to compute.
        items: pictures.
        spec: preprocessing of the pictures.
        engine: runs the model.
        memory_limit_mb: of the outputs of one run.
        optimise: the runtime's graph rewrites.

    Returns:
        float64 arrays by the requests' keys, of the shapes that :class:`MomentRequest` documents.

    Raises:
        CalibrationError: no pictures, unknown tensors, a tensor without channels, NaN or Inf, an operator
            that has no Gram matrix.
        DataError: a picture cannot be read.
    """
    if not items:
        raise CalibrationError(
            "there are no pictures to average over", fix="give --data a folder of pictures"
        )
    sums_of: dict[str, _Sums] = {}
    for request in dict.fromkeys(requests):
        unfold = unfold_of(view, request.reader) if request.kind == "gram" and view is not None else None
        sums_of.setdefault(request.tensor, _Sums(request.tensor)).sums.append(_Sum(request, unfold))
    if not sums_of:
        return {}
    observer = Observer(observe(model, list(sums_of), memory_limit_mb), engine, spec, optimise=optimise)
    try:
        with opencv_on_one_thread(), one_blas_thread():
            for item, name, values in observer.values(sorted(items, key=lambda item: item.sha256)):
                sums_of[name].add(values, item)
    finally:
        observer.close()
    return {s.request.key: s.result() for sums in sums_of.values() for s in sums.sums}


def _per_channel(reduce: Callable[..., AnyArray], values: AnyArray) -> F64:
    axes = (0, *range(2, values.ndim))
    reduced: F64 = np.asarray(reduce(values, axis=axes, dtype=np.float64))
    return reduced
