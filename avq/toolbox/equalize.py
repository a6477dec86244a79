"""Cross-layer equalisation: channels of two convolutions scaled against each other, exactly.

For f with f(s x) = s f(x), s > 0, dividing an output channel of the first convolution by s and multiplying the
same input channel of the second by s changes nothing in real numbers and everything for one common scale: Nagel
et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avq.types import F64, AnyArray, GraphView, NodeView
from avq.types.arrays import ArrayRecord

#: Positively homogeneous per channel: f(s x) = s f(x) for s > 0.
_HOMOGENEOUS = frozenset(
    {"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity"}
)
_WHY_NOT = {
    "Clip": "its bounds would have to move with every channel's scale (ReLU6)",
    "HardSwish": "hard-swish bends at fixed inputs",
    "HardSigmoid": "hard-sigmoid and hard-swish bend at fixed inputs",
    "Sigmoid": "SiLU and sigmoid curve at fixed inputs: f(s x) is not s f(x)",
    "Softplus": "it curves at fixed inputs",
    "Tanh": "it curves at fixed inputs",
    "Elu": "it curves at fixed inputs",
    "Gelu": "it curves at fixed inputs",
    "Mish": "it curves at fixed inputs",
}
_ROUNDS = 10
#: A channel is scaled by at most this much, up or down.
_LARGEST_FACTOR = 1e4


@dataclass(frozen=True)
class Pair:
    """Two convolutions whose channels between them may be scaled.

    Attributes:
        first: node name of the convolution that writes the channels.
        second: node name of the convolution that reads them.
        between: names of the nodes between the two.
    """

    first: str
    second: str
    between: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Equalization(ArrayRecord):
    """Result of ``equalize``.

    Attributes:
        overrides: constant name -> read-only weights or biases that replace the float graph's.
        factors: pair -> (C,) float64 divisors of the first convolution's output channels.
        refused: convolution -> why the channels it writes are not scaled.
    """

    overrides: Mapping[str, AnyArray]
    factors: Mapping[Pair, F64]
    refused: Mapping[str, str]

    def __post_init__(self) -> None:
        self._freeze("overrides", "factors")


def equalized(graph: GraphView, peaks: Mapping[str, F64] | None = None) -> Mapping[str, AnyArray]:
    """Return overrides of weights and biases: ``equalize(...).overrides``."""
    return equalize(graph, peaks).overrides


def equalize(graph: GraphView, peaks: Mapping[str, F64] | None = None) -> Equalization:
    """Scale channels between convolutions so that they share one quantization scale well.

    Valid directly and through ReLU, LeakyReLU, PReLU and pooling; refused, with the reason, through other operators,
    where a tensor has other readers or is an output, and where constants are shared. In real numbers the network
    stays the same.

    Args:
        graph: the float graph.
        peaks: tensor name -> largest magnitude of every channel, (C,) float64. Then channels of the tensor that the
            second convolution reads are brought together: fully where that convolution is depthwise, whose weights
            have a scale per channel in any case, half otherwise. None makes the ranges of the two weights equal,
            which needs no data.

    Returns:
        Overrides, factors and refused convolutions.
    """
    pairs, refused = find_pairs(graph)
    values: dict[str, F64] = {}
    factors: dict[Pair, F64] = {}
    reach = {name: peak.astype(np.float64) for name, peak in (peaks or {}).items()}
    for _ in range(_ROUNDS):
        moved = False
        for pair in pairs:
            first, second = graph.node(pair.first), graph.node(pair.second)
            factor = _factor(graph, values, first, second, reach.get(second.inputs[0]))
            if np.max(np.abs(np.log(factor)), initial=0.0) > 1e-3:
                moved = True
                _apply(graph, values, first, second, factor)
                _follow(graph, pair, reach, factor)
                factors[pair] = factors.get(pair, np.ones_like(factor)) * factor
        if not moved:
            break
    overrides = {name: value.astype(graph.constants[name].dtype) for name, value in values.items()}
    return Equalization(overrides, factors, refused)


def find_pairs(graph: GraphView) -> tuple[tuple[Pair, ...], Mapping[str, str]]:
    """Find the pairs whose channels can be scaled.

    Returns:
        The pairs in graph order, and convolution -> why it is not the first of a pair.
    """
    pairs: list[Pair] = []
    refused: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "Conv" and graph.is_constant(node.inputs[1]):
            pair = _follow_to_convolution(graph, node)
            if isinstance(pair, Pair):
                pairs.append(pair)
            else:
                refused[node.name] = pair
    return tuple(pairs), refused


def _follow_to_convolution(graph: GraphView, first: NodeView) -> Pair | str:
    """The convolution that reads what ``first`` writes, or why its channels cannot be scaled."""
    between: list[str] = []
    why = _own_constants(graph, first, (1, 2))
    node = first
    while not why:
        why, readers = _only_reader(graph, node.outputs[0])
        if why:
            break
        node, index = readers
        if node.op == "Conv" and index == 0 and graph.is_constant(node.inputs[1]):
            why = _own_constants(graph, node, (1,))
            return why or Pair(first.name, node.name, tuple(between))
        why = _bends(graph, node, index)
        between.append(node.name)
    return why


def _only_reader(graph: GraphView, tensor: str) -> tuple[str, tuple[NodeView, int]]:
    """("", the one reader of ``tensor``), or why there is none."""
    readers = graph.consumers(tensor)
    for node, index in readers:
        if node.op in _WHY_NOT and _bends(graph, node, index):
            return _bends(graph, node, index), (node, index)
    if tensor in graph.output_names or len(readers) != 1:
        more = " and are an output" if tensor in graph.output_names else ""
        return f"its channels have {len(readers)} readers{more}", (graph.nodes[0], 0)
    return "", readers[0]


def _bends(graph: GraphView, node: NodeView, index: int) -> str:
    """Why channels cannot be scaled through ``node``; empty when they can."""
    if node.op == "PRelu" and (index != 0 or not graph.is_constant(node.inputs[1])):
        return "the slope of its PRelu is computed"
    if node.op in _HOMOGENEOUS or _is_relu(graph, node):
        return ""
    why = _WHY_NOT.get(node.op)
    return f"{node.op}: {why}" if why else f"{node.op} is not known to be positively homogeneous per channel"


def _is_relu(graph: GraphView, node: NodeView) -> bool:
    """Return True for a Clip from zero without an upper bound."""
    if node.op != "Clip":
        return False
    low = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    bounded = len(node.inputs) > 2 and bool(node.inputs[2])
    high = graph.constants.get(node.inputs[2]) if bounded else np.asarray(np.inf)
    return low is not None and high is not None and not np.any(low) and bool(np.all(np.isinf(high)))


def _own_constants(graph: GraphView, node: NodeView, indices: tuple[int, ...]) -> str:
    for index in indices:
        if len(node.inputs) > index and node.inputs[index]:
            name = node.inputs[index]
            if not graph.is_constant(name):
                return f"input {index} of {node.name} is computed"
            if len(graph.consumers(name)) > 1:
                return f"{name} is shared with other nodes"
    return ""


def _value(graph: GraphView, values: Mapping[str, F64], name: str) -> F64:
    value = values.get(name)
    return value if value is not None else graph.constants[name].astype(np.float64)


def _factor(
    graph: GraphView, values: Mapping[str, F64], first: NodeView, second: NodeView, peak: F64 | None
) -> F64:
    """(channels,) what the first is divided by and the second multiplied by; 1 where a channel is dead."""
    written = _value(graph, values, first.inputs[1])
    own = np.abs(written).reshape(written.shape[0], -1).max(axis=1) if peak is None else peak
    read = _by_input(second, _value(graph, values, second.inputs[1]))
    other = np.abs(read).max(axis=(1, 2), initial=0.0)
    alive = (own > 0) & (other > 0)
    if not alive.any():
        return np.ones_like(own)
    depthwise = read.shape[1] == 1 and int(second.attributes.get("group", 1)) == read.shape[0]
    wanted = own if peak is not None and depthwise else np.sqrt(own / np.where(alive, other, 1.0))
    factor = np.where(alive, wanted, 1.0)
    if peak is not None:  # scales of all channels together change nothing
        factor = np.where(alive, factor / np.exp(np.log(factor[alive]).mean()), 1.0)
    limited: F64 = np.clip(factor, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return limited


def _by_input(node: NodeView, weight: F64) -> F64:
    """A convolution's weight as (input channels, outputs that read one, taps)."""
    groups = int(node.attributes.get("group", 1))
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    by_input: F64 = split.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], split.shape[1], -1)
    return by_input


def _apply(graph: GraphView, values: dict[str, F64], first: NodeView, second: NodeView, factor: F64) -> None:
    written = _value(graph, values, first.inputs[1])
    values[first.inputs[1]] = written / factor.reshape(-1, *[1] * (written.ndim - 1))
    if len(first.inputs) > 2 and first.inputs[2]:
        values[first.inputs[2]] = _value(graph, values, first.inputs[2]) / factor
    read = _value(graph, values, second.inputs[1])
    groups = int(second.attributes.get("group", 1))
    per_output = np.repeat(factor.reshape(groups, -1), read.shape[0] // groups, axis=0)
    values[second.inputs[1]] = read * per_output.reshape(*per_output.shape, *[1] * (read.ndim - 2))


def _follow(graph: GraphView, pair: Pair, reach: dict[str, F64], factor: F64) -> None:
    """The peaks of every tensor between the two, after scaling."""
    for name in (pair.first, *pair.between):
        tensor = graph.node(name).outputs[0]
        if tensor in reach:
            reach[tensor] = reach[tensor] / factor
