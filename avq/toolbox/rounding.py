"""Weights rounded up or down for the least output error, without gradients and without stored activations.

The objective is AdaRound's (Nagel et al., "Up or Down?", 2020) before its relaxation: per layer the squared
error of its output on calibration pictures, tr(D G D^T) with D = Wq - W and G = E[x x^T]. It is solved by
elimination as in GPTQ (Frantar et al., 2022), held to the two neighbouring levels, then by coordinate descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from avq.hookspecs import Workbench
from avq.toolbox.grids import dequantize, quantize, spread
from avq.types import F64, I64, AnyArray, GraphView, MomentRequest, NodeView, QuantizationPlan, QuantPoint
from avq.types.arrays import ArrayRecord

#: Added to the diagonal, in units of its mean: directions without data must not decide (GPTQ's damping).
_DAMPING = 0.01
#: Rounds of coordinate descent; most layers converge in three.
_SWEEPS = 4
#: Inputs rounded before the rest is updated in one matrix product.
_BLOCK = 64


def one_blas_thread() -> AbstractContextManager[object]:
    """Return a context manager that limits BLAS to one thread.

    Sums then have one order on every machine, and no thread waits for another on a busy one.
    """
    from threadpoolctl import threadpool_limits

    limit: AbstractContextManager[object] = threadpool_limits(1, "blas")
    return limit


def output_error(deviation: F64, gram: F64) -> F64:
    """Compute d G d^T per output channel.

    Args:
        deviation: (G, R, K) rounded minus real weights.
        gram: (G, K, K) E[x x^T].

    Returns:
        (G, R) squared output errors.
    """
    error: F64 = np.multiply(deviation @ gram, deviation).sum(axis=2)
    return error


def solve(weights: F64, scale: F64, zero_point: I64, nearest: I64, levels: tuple[I64, I64], gram: F64) -> I64:
    """Round every weight to one of its two neighbouring levels for a small output error.

    No channel gets a larger error, damping included, than by rounding to nearest.

    Args:
        weights: (G, R, K) real values.
        scale: (G, R, K) of every weight.
        zero_point: (G, R, K) of every weight.
        nearest: (G, R, K) integers of rounding to nearest.
        levels: the level below and the level above every weight; equal where the grid ends.
        gram: (G, K, K) E[x x^T].

    Returns:
        (G, R, K) integers.
    """
    damped = _damped(gram)
    down, up = ((level - zero_point) * scale for level in levels)
    chosen = _descend(_eliminate(weights, down, up, damped), weights, down, up, damped)
    error = output_error(np.where(chosen, up, down) - weights, damped)
    error_of_nearest = output_error((nearest - zero_point) * scale - weights, damped)
    better = (error < error_of_nearest)[:, :, None]
    solved: I64 = np.where(better, np.where(chosen, levels[1], levels[0]), nearest)
    return solved


def _damped(gram: F64) -> F64:
    size = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2) / size
    extra = np.where(mean > 0, _DAMPING * mean, 1.0)
    damped: F64 = gram + extra[:, None, None] * np.eye(size)
    return damped


def _eliminate(weights: F64, down: F64, up: F64, gram: F64) -> AnyArray:
    """Round one input after the other and let the following ones compensate the error, as GPTQ."""
    size = gram.shape[-1]
    factor = np.linalg.cholesky(np.linalg.inv(gram)).transpose(0, 2, 1)  # upper: G^-1 = U^T U
    left = weights.copy()
    chosen: AnyArray = np.zeros(weights.shape, bool)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = np.zeros((*weights.shape[:2], end - start))
        for k in range(start, end):
            here = left[:, :, k]
            chosen[:, :, k] = np.abs(up[:, :, k] - here) < np.abs(down[:, :, k] - here)
            real = np.where(chosen[:, :, k], up[:, :, k], down[:, :, k])
            error = (here - real) / factor[:, None, k, k]
            left[:, :, k + 1 : end] -= error[:, :, None] * factor[:, None, k, k + 1 : end]
            errors[:, :, k - start] = error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return chosen


def _descend(start: AnyArray, weights: F64, down: F64, up: F64, gram: F64) -> AnyArray:
    """Move single weights to their other level while that lowers the error."""
    chosen: AnyArray = start.copy()
    slopes = (np.where(chosen, up, down) - weights) @ gram
    for _ in range(_SWEEPS):
        before = chosen.copy()
        for first in range(0, gram.shape[-1], _BLOCK):
            block = slice(first, min(first + _BLOCK, gram.shape[-1]))
            steps = _descend_block(
                chosen[:, :, block], (up - down)[:, :, block], slopes[:, :, block], gram[:, block, block]
            )
            slopes += steps @ gram[:, block, :]
        if np.array_equal(before, chosen):
            break
    return chosen


def _descend_block(chosen: AnyArray, gaps: F64, slopes: F64, gram: F64) -> F64:
    """Sweep once over neighbouring inputs, change ``chosen`` in place and return the step of every weight."""
    local = slopes.copy()
    steps = np.zeros(gaps.shape)
    for k in range(gram.shape[-1]):
        step = np.where(chosen[:, :, k], -gaps[:, :, k], gaps[:, :, k])
        gain = step * (2.0 * local[:, :, k] + step * gram[:, None, k, k])
        move = gain < 0
        chosen[:, :, k] ^= move
        steps[:, :, k] = np.where(move, step, 0.0)
        local += steps[:, :, k, None] * gram[:, None, k, :]
    return steps


#: Largest Gram matrices of one layer: K = 2896 inputs of one output.
_LAYER_BYTES = 67_108_864
#: Largest Gram matrices of one pass over the pictures.
_PASS_BYTES = 268_435_456


@dataclass(frozen=True, eq=False)
class RoundedWeights(ArrayRecord):
    """Result of ``round_weights``.

    Attributes:
        weights: name of the weight constant -> read-only float array that quantizes to exactly the chosen integers.
        errors: weight -> mean squared output error over the output channels, (rounded to nearest, as chosen).
        skipped: node name -> why its weights are rounded to nearest.
    """

    weights: Mapping[str, AnyArray]
    errors: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]

    def __post_init__(self) -> None:
        self._freeze("weights")


@dataclass(frozen=True)
class _Layer:
    """One weight with all its readers."""

    weight: str
    readers: tuple[NodeView, ...]
    point: QuantPoint
    values: AnyArray

    def rows(self, values: AnyArray) -> AnyArray:
        """Reshape the weight, or an array that broadcasts to it, to (G, outputs of a group, K)."""
        node = self.readers[0]
        spread_out = np.broadcast_to(values, self.values.shape)
        if node.op == "Conv":
            groups = int(node.attributes.get("group", 1))
            return spread_out.reshape(groups, spread_out.shape[0] // groups, -1)
        return (spread_out if node.attributes.get("transB", 0) else spread_out.T)[None]

    def whole(self, rows: I64) -> I64:
        """Reshape the result of ``rows`` back to the shape of the weight."""
        if self.readers[0].op == "Conv":
            whole: I64 = rows.reshape(self.values.shape)
            return whole
        matrix: I64 = rows[0]
        return matrix if self.readers[0].attributes.get("transB", 0) else matrix.T

    @property
    def requests(self) -> list[MomentRequest]:
        return [MomentRequest(node.inputs[0], "gram", node.name) for node in self.readers]

    @property
    def inputs(self) -> int:
        return int(self.rows(self.values).shape[2])

    @property
    def gram_bytes(self) -> int:
        rows = self.rows(self.values)
        return 8 * int(rows.shape[0]) * int(rows.shape[2]) ** 2 * len(self.readers)


def gram_rounded_weights(
    graph: GraphView, plan: QuantizationPlan, bench: Workbench
) -> Mapping[str, AnyArray]:
    """Return overrides for weights: ``round_weights(...).weights``."""
    return round_weights(graph, plan, bench).weights


def round_weights(graph: GraphView, plan: QuantizationPlan, bench: Workbench) -> RoundedWeights:
    """Choose, for every planned weight of Conv, Gemm and MatMul, the integers with the least output error.

    The grids come from ``plan``; weights come from ``graph``, also where ``plan`` overrides them. A weight that
    several nodes read is rounded once, for all of their inputs. Memory is bounded: matrices of up to 268 MB
    are summed in one pass over the pictures, more take further passes, and layers with more than 2896 inputs
    per output are skipped, with the reason. The same inputs give the same integers.

    Args:
        graph: the float graph.
        plan: grids of the weights.
        bench: gives the Gram matrices.

    Returns:
        Rounded weights, errors and skipped nodes.
    """
    layers, skipped = _layers(graph, plan)
    weights: dict[str, AnyArray] = {}
    errors: dict[str, tuple[float, float]] = {}
    for batch in _batches(layers):
        grams = bench.moments([request for layer in batch for request in layer.requests])
        for layer in batch:
            gram = np.sum([grams[request.key] for request in layer.requests], axis=0)
            with one_blas_thread():
                chosen, errors[layer.weight] = _round(layer, gram)
            if np.any(chosen != quantize(layer.values, layer.point)):
                weights[layer.weight] = dequantize(chosen, layer.point).astype(layer.values.dtype)
    return RoundedWeights(weights, errors, skipped)


def _layers(graph: GraphView, plan: QuantizationPlan) -> tuple[list[_Layer], dict[str, str]]:
    layers: list[_Layer] = []
    skipped: dict[str, str] = {}
    readers: dict[str, list[tuple[NodeView, QuantPoint]]] = {}
    for node in graph.nodes:
        point = plan.point_for(node.inputs[1], node.name, 1) if len(node.inputs) > 1 else None
        if point is not None and graph.is_constant(node.inputs[1]):
            readers.setdefault(node.inputs[1], []).append((node, point))
    for weight, read in readers.items():
        why = next((w for node, _ in read if (w := _unfit(graph, node))), "") or _unlike(graph, weight, read)
        layer = _Layer(weight, tuple(n for n, _ in read), read[0][1], graph.constants[weight])
        if not why and layer.gram_bytes > _LAYER_BYTES:
            why = f"{layer.inputs} inputs per output: its Gram matrix would take too much memory"
        if why:
            skipped.update({node.name: why for node, _ in read})
        else:
            layers.append(layer)
    return layers, skipped


def _unfit(graph: GraphView, node: NodeView) -> str:
    rank = graph.constants[node.inputs[1]].ndim
    if node.op == "Conv" and rank == 4 and not graph.is_constant(node.inputs[0]):
        return ""
    if node.op in ("Gemm", "MatMul") and rank == 2 and not node.attributes.get("transA", 0):
        return ""
    return f"{node.op} with weights of rank {rank} has no Gram matrix here"


def _unlike(graph: GraphView, weight: str, read: Sequence[tuple[NodeView, QuantPoint]]) -> str:
    if len(graph.consumers(weight)) != len(read):
        return "its weight is read elsewhere too"
    point = read[0][1]
    if point.mode == "dynamic" or point.rounding != "half_even":
        return f"a {point.mode} grid with rounding {point.rounding}"
    forms = {(n.op, n.attributes.get("transB", 0), int(n.attributes.get("group", 1))) for n, _ in read}
    grids = {(p.bits, p.axis, p.scale.tobytes(), p.zero_point.tobytes()) for _, p in read}
    return "its weight is shared in unlike ways" if len(forms) > 1 or len(grids) > 1 else ""


def _batches(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    batch: list[_Layer] = []
    for layer in layers:
        if batch and sum(each.gram_bytes for each in batch) + layer.gram_bytes > _PASS_BYTES:
            yield batch
            batch = []
        batch.append(layer)
    if batch:
        yield batch


def _round(layer: _Layer, gram: F64) -> tuple[I64, tuple[float, float]]:
    """Return the integers in the weight's shape, and the mean output errors of nearest and chosen."""
    point, values = layer.point, layer.values
    scale = layer.rows(spread(point.scale.astype(np.float64), values.shape, point))
    zero_point = layer.rows(spread(point.zero_point, values.shape, point))
    nearest = layer.rows(quantize(values, point))
    weights = layer.rows(values).astype(np.float64)
    chosen = solve(weights, scale, zero_point, nearest, _levels(weights / scale + zero_point, point), gram)
    before, after = (
        float(output_error((q - zero_point) * scale - weights, gram).mean()) for q in (nearest, chosen)
    )
    return layer.whole(chosen), (before, after)


def _levels(steps: F64, point: QuantPoint) -> tuple[I64, I64]:
    """Return the levels below and above; a grid of one bit has two levels."""
    if point.bits == 1:
        return np.full(steps.shape, -1, np.int64), np.full(steps.shape, 1, np.int64)
    below = np.clip(np.floor(steps), point.qmin, point.qmax).astype(np.int64)
    above = np.clip(np.floor(steps) + 1, point.qmin, point.qmax).astype(np.int64)
    return below, above
