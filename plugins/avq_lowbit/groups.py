"""What changes its width together: the operators that read one weight tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.toolbox import Placement
from avq.types import GraphView

#: Widths of the walk, first to last.
WIDTHS = (8, 6, 4, 3, 2, 1)
#: Of a target that unpacks nothing.
NATIVE_WIDTHS = (8, 4)
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Group:
    """One weight tensor and its readers.

    Attributes:
        name: of its first operator.
        kind: of that operator.
        tensor: the weights.
        placements: the operators.
        count: weights.
        scales: one per channel, or one.
    """

    name: str
    kind: str
    tensor: str
    placements: tuple[Placement, ...]
    count: int
    scales: int

    def bytes_at(self, bits: int) -> int:
        """In the file: packed weights and their scales; 32 bits are float weights without a scale."""
        return -(-self.count * bits // 8) + (0 if bits == 32 else _SCALE_BYTES * self.scales)


def weight_groups(graph: GraphView, placements: Sequence[Placement]) -> tuple[Group, ...]:
    """One group per quantizable weight tensor, in graph order."""
    readers: dict[str, list[Placement]] = {}
    for placement in placements:
        if placement.weight is not None:
            readers.setdefault(placement.weight.tensor, []).append(placement)
    return tuple(_group(graph, tensor, found) for tensor, found in readers.items())


def _group(graph: GraphView, tensor: str, readers: Sequence[Placement]) -> Group:
    shape, axis = graph.constants[tensor].shape, readers[0].weight_axis
    scales = 1 if axis is None else shape[axis]
    first = readers[0]
    return Group(first.node, first.kind, tensor, tuple(readers), graph.constants[tensor].size, scales)


def other_bytes(graph: GraphView, groups: Sequence[Group]) -> int:
    """Constants that stay as they are: biases, the decoded head, and whatever else the graph holds."""
    inside = {group.tensor for group in groups}
    return sum(array.nbytes for name, array in graph.constants.items() if name not in inside)
