"""Causes of slow INT8 in the plan, the graph, the engine and the processor, each with its fix.

The rules follow how runtimes fuse quantizers: an operator runs in integers when its inputs are quantized and,
for onnxruntime's convolutions, when a quantizer stands straight behind it (its QDQ fusion needs both).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from avq.builder.trials.layer_times import LayerCosts
from avq.builder.trials.serving import Candidate
from avq.engines.cpu import has_eight_bit_dot
from avq.toolbox import Placement, place
from avq.types import GraphView, NodeView, QuantizationPlan

#: Fewer channels leave the lanes of eight-bit multiply-add instructions empty.
FEW_CHANNELS = 16
_FUSED_BEHIND = ("Relu", "Clip", "LeakyRelu")
_CURVED = ("Sigmoid", "HardSigmoid", "HardSwish", "Mul", "Mish", "Gelu", "Erf", "Tanh", "Softplus")


@dataclass(frozen=True)
class Slowdown:
    """One reason why INT8 costs time.

    Attributes:
        name: short and stable, for tests and searches.
        what: one sentence.
        fix: what to do about it.
        nodes: operators it concerns.
        ms: measured milliseconds it adds to an inference, negative where INT8 is faster; None: not measured.
    """

    name: str
    what: str
    fix: str
    nodes: tuple[str, ...] = ()
    ms: float | None = None


@dataclass(frozen=True)
class Context:
    """A plan as it is served, for the search of causes.

    Attributes:
        candidate: engine, encoding and float precision as served.
        runs_in: precision that the engine reports; '' where unknown.
        isa: the processor's instruction set, space separated.
        costs: measured layers, where the engine profiles.
    """

    graph: GraphView
    plan: QuantizationPlan
    candidate: Candidate
    runs_in: str
    isa: str
    costs: LayerCosts | None = None


def find_slowdowns(context: Context) -> list[Slowdown]:
    """Return the causes that apply, the most expensive first; empty for a plan without quantizers."""
    if not context.plan.points:
        return []
    int8 = [p for p in place(context.graph) if _quantized(context.plan, p)]
    slowdowns: list[Slowdown] = []
    for rule in (
        _ran_in_float, _no_dot_product, _signed_on_x86, _boundaries, _curved_activations, _depthwise,
        _few_channels, _single_rows, _unequal_concats, _quantized_outputs, _dynamic,
    ):  # fmt: skip
        slowdowns += rule(context, int8)
    return sorted(slowdowns, key=lambda cause: -(cause.ms if cause.ms is not None else -1e9))


def _quantized(plan: QuantizationPlan, placement: Placement) -> bool:
    edges = [*placement.activations, *([placement.weight] if placement.weight else [])]
    return all(plan.point_for(e.tensor, e.node, e.input_index) is not None for e in edges)


def _cost(context: Context, nodes: Iterable[str]) -> float | None:
    return None if context.costs is None else context.costs.added_ms(tuple(nodes))


def _count(things: Sequence[str], name: str) -> str:
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def _ran_in_float(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    if not context.runs_in or "int8" in context.runs_in or not int8:
        return []
    return [
        Slowdown(
            "ran-in-float",
            f"{context.candidate.engine} ran this plan in {context.runs_in or 'float'}: its quantizers cost time",
            "take another engine (--target openvino or onnxruntime), or --strategy float",
        )
    ]


def _no_dot_product(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    if has_eight_bit_dot(context.isa):
        return []
    return [
        Slowdown(
            "no-dot-product",
            "this processor has no eight-bit dot product (VNNI, AMX or SDOT): INT8 needs three instructions for one",
            "serve on a processor that has it; here --strategy mixed keeps float what INT8 slows down",
        )
    ]


def _signed_on_x86(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    if (
        context.candidate.engine != "onnxruntime"
        or context.candidate.encoding != "s8"
        or "x86" not in context.isa
    ):
        return []
    return [
        Slowdown(
            "signed-on-x86",
            "Signed activations on x86: its eight-bit multiply takes unsigned by signed, so kernels are emulated",
            "--option activations=asymmetric gives unsigned data with a zero point",
        )
    ]


def _boundaries(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    """Find tensors that enter INT8 from a float operator, and those that leave it."""
    names = {p.node for p in int8}
    entering = [
        p.node for p in int8 if any(_from_float(context.graph, e.tensor, names) for e in p.activations)
    ]
    leaving = [p.node for p in int8 if _read_in_float(context.graph, p.node, names)]
    if not entering and not leaving:
        return []
    ms = None if context.costs is None else context.costs.added_conversions_ms
    return [
        Slowdown(
            "boundaries",
            f"{len(entering)} operators read float data that must be quantized first, {len(leaving)} hand on to "
            "float ones",
            "--strategy mixed prices every boundary and moves islands together",
            tuple(dict.fromkeys((*entering, *leaving))),
            ms,
        )
    ]


def _from_float(graph: GraphView, tensor: str, int8: set[str]) -> bool:
    writer = _weighted_before(graph, tensor)
    return writer is not None and writer.name not in int8


def _weighted_before(graph: GraphView, tensor: str, limit: int = 12) -> NodeView | None:
    """Find the nearest weighted operator before ``tensor``, along first inputs; None for the picture."""
    for _ in range(limit):
        node = graph.producer(tensor)
        if node is None:
            return None
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return node
        tensor = next((name for name in node.inputs if name and not graph.is_constant(name)), "")
    return None


def _read_in_float(graph: GraphView, name: str, int8: set[str], limit: int = 24) -> bool:
    """Whether a weighted float operator follows before the next INT8 one; leaving for the outputs is inevitable."""
    frontier, seen = list(graph.node(name).outputs), set[str]()
    while frontier and len(seen) < limit:
        tensor = frontier.pop(0)
        if tensor in seen:
            continue
        seen.add(tensor)
        for reader, _ in graph.consumers(tensor):
            if reader.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                frontier += reader.outputs
            elif reader.name not in int8:
                return True
    return False


def _curved_activations(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    """onnxruntime runs a quantized convolution in integers only when a quantizer stands straight behind it."""
    if context.candidate.engine != "onnxruntime":
        return []
    nodes = tuple(p.node for p in int8 if p.kind != "matmul" and _curve_behind(context.graph, p.node))
    if not nodes:
        return []
    return [
        Slowdown(
            "curved-activations",
            f"{_count(nodes, 'INT8 convolution')} in front of SiLU, hard-swish or the like: onnxruntime dequantizes "
            "around each, or runs the convolution in float",
            "--target openvino fuses these activations, or train the network with ReLU",
            nodes,
            _cost(context, nodes),
        )
    ]


def _curve_behind(graph: GraphView, name: str) -> bool:
    readers = graph.consumers(graph.node(name).outputs[0])
    while len(readers) == 1 and readers[0][0].op in _FUSED_BEHIND:
        readers = graph.consumers(readers[0][0].outputs[0])
    return any(reader.op in _CURVED for reader, _ in readers)


def _depthwise(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    nodes = tuple(p.node for p in int8 if p.kind == "depthwise")
    if not nodes:
        return []
    return [
        Slowdown(
            "depthwise",
            f"{_count(nodes, 'depthwise convolution')} in INT8: they wait for memory, not for multipliers, and the "
            "conversion around each is paid in full",
            "--option depthwise=float, or --strategy mixed",
            nodes,
            _cost(context, nodes),
        )
    ]


def _few_channels(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    nodes = tuple(
        p.node
        for p in int8
        if p.kind in ("dense", "grouped") and p.weight is not None
        if min(context.graph.constants[p.weight.tensor].shape[:2]) < FEW_CHANNELS
    )
    if not nodes:
        return []
    return [
        Slowdown(
            "few-channels",
            f"{_count(nodes, 'INT8 convolution')} with fewer than {FEW_CHANNELS} channels in or out: the "
            "eight-bit lanes stay empty",
            "keep them float (--strategy mixed measures which), or give the network multiples of 16 channels",
            nodes,
            _cost(context, nodes),
        )
    ]


def _single_rows(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    nodes = tuple(p.node for p in int8 if p.kind == "matmul" and _rows(context.graph, p) == 1)
    if not nodes:
        return []
    return [
        Slowdown(
            "single-rows",
            f"{_count(nodes, 'matrix product')} of a single row, bound by reading the weights",
            "weights alone in eight bits suffice there; INT8 arithmetic wins nothing",
            nodes,
            _cost(context, nodes),
        )
    ]


def _rows(graph: GraphView, placement: Placement) -> int | None:
    shape = graph.shape(placement.activations[0].tensor)
    return int(np.prod(shape[:-1])) if shape and -1 not in shape else None


def _unequal_concats(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    nodes = tuple(n.name for n in context.graph.nodes if n.op == "Concat" and _unequal(context, n))
    if not nodes:
        return []
    return [
        Slowdown(
            "unequal-concats",
            f"{_count(nodes, 'concatenation')} of tensors with different scales: every input is quantized again",
            "tie their scales: --target tensorrt does, and a strategy can by QuantizationPlan.ties",
            nodes,
            _cost(context, nodes),
        )
    ]


def _unequal(context: Context, concat: NodeView) -> bool:
    points = [
        point
        for index, tensor in enumerate(concat.inputs)
        if (point := context.plan.point_for(tensor, concat.name, index)) is not None
    ]
    scales = {(p.scale.tobytes(), p.zero_point.tobytes()) for p in points}
    return len(scales) > 1


def _quantized_outputs(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    ends = [
        p.edge.tensor
        for p in context.plan.points
        if not p.edge.node and p.edge.tensor in context.graph.output_names
    ]
    if not ends:
        return []
    return [
        Slowdown(
            "quantized-outputs",
            f"{_count(ends, 'graph output')} quantized and dequantized again without a reader: {', '.join(ends[:3])}",
            "keep the outputs float: the decoder reads float",
        )
    ]


def _dynamic(context: Context, int8: Sequence[Placement]) -> list[Slowdown]:
    count = sum(point.mode == "dynamic" for point in context.plan.points)
    if not count:
        return []
    return [
        Slowdown(
            "dynamic-ranges",
            f"{count} tensors get their range at run time: each is read twice per inference",
            "--strategy static fixes the ranges by calibration",
        )
    ]
