"""Weights rounded up or down for the least output error, without gradients and without stored activations.

The objective is AdaRound's (Nagel et al., "Up or Down?", 2020) before its relaxation: per layer the squared
error of its output on calibration pictures, tr(D G D^T) with D = Wq - W and G = E[x x^T]. It is solved by
elimination as in GPTQ (Frantar et al., 2022), held to the two neighbouring levels, then by coordinate descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avq.hookspecs import Workbench
from avq.toolbox.grids import dequantize, quantize, spread
from avq.toolbox.rounding_solver import one_blas_thread, output_error, solve
from avq.types import F64, I64, AnyArray, GraphView, MomentRequest, NodeView, QuantizationPlan, QuantPoint

#: Gram matrices larger than this are not asked for: K = 2896 inputs of one output.
_LAYER_BYTES = 67_108_864
#: Held at once, in one pass over the pictures.
_PASS_BYTES = 268_435_456


@dataclass(frozen=True)
class RoundedWeights:
    """What rounding came to.

    Attributes:
        weights: name of the weight constant -> float array that quantizes to exactly the chosen integers.
        errors: weight -> (rounded to nearest, as chosen) mean squared output error over the output channels.
        skipped: node -> why its weights are rounded to nearest.
    """

    weights: Mapping[str, AnyArray]
    errors: Mapping[str, tuple[float, float]]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class _Layer:
    """One weight with everything that reads it."""

    weight: str
    readers: tuple[NodeView, ...]
    point: QuantPoint
    values: AnyArray

    def rows(self, values: AnyArray) -> AnyArray:
        """The weight, or what varies along with it, as (G, outputs of a group, K)."""
        node = self.readers[0]
        spread_out = np.broadcast_to(values, self.values.shape)
        if node.op == "Conv":
            groups = int(node.attributes.get("group", 1))
            return spread_out.reshape(groups, spread_out.shape[0] // groups, -1)
        return (spread_out if node.attributes.get("transB", 0) else spread_out.T)[None]

    def whole(self, rows: I64) -> I64:
        """:meth:`rows` undone."""
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
    """Overrides for weights; see :func:`round_weights`, which also tells errors and what was skipped."""
    return round_weights(graph, plan, bench).weights


def round_weights(graph: GraphView, plan: QuantizationPlan, bench: Workbench) -> RoundedWeights:
    """Choose, for every planned weight of Conv, Gemm and MatMul, the integers with the least output error.

    The grids are the plan's; weights come from ``graph``, also where ``plan`` overrides them. A weight that
    several nodes read is rounded once, for all of their inputs. Memory is bounded: matrices of up to 268 MB
    are summed in one pass over the pictures, more take further passes, and layers with more than 2896 inputs
    per output are skipped and told. The same inputs give the same integers.
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
    found: list[_Layer] = []
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
            found.append(layer)
    return found, skipped


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
    """The integers in the weight's shape, and the mean output errors of nearest and chosen."""
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
    """The levels below and above; one bit has two in all."""
    if point.bits == 1:
        return np.full(steps.shape, -1, np.int64), np.full(steps.shape, 1, np.int64)
    below = np.clip(np.floor(steps), point.qmin, point.qmax).astype(np.int64)
    above = np.clip(np.floor(steps) + 1, point.qmin, point.qmax).astype(np.int64)
    return below, above
