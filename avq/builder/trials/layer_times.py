"""Map the layers of a runtime, fused and renamed, to nodes of the float graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from avq.toolbox.assemble import COMPUTE_OPS
from avq.types import GraphView, LayerTime

_QUANTIZERS = ("/QuantizeLinear", "/DequantizeLinear")


def by_node(layers: Sequence[LayerTime], graph: GraphView) -> dict[str, int]:
    """Return nanoseconds by node name.

    A fused layer's time stands at its first weighted node, else at its first node. Layers without a node of
    the graph (format changes, quantizers) are added to the next layer with one, their reader.
    """
    known = {node.name: node.op for node in graph.nodes}
    times: dict[str, int] = {}
    waiting, last = 0, ""
    for layer in layers:
        mine = [name for name in _names(layer) if name in known]
        if not mine:
            waiting += layer.ns
            continue
        last = next((name for name in mine if known[name] in COMPUTE_OPS), mine[0])
        times[last] = times.get(last, 0) + layer.ns + waiting
        waiting = 0
    if last:
        times[last] += waiting
    return times


def _names(layer: LayerTime) -> Iterator[str]:
    """Yield names of nodes as in the file: runtimes append their own steps to them."""
    for name in layer.nodes:
        if not any(mark in name for mark in _QUANTIZERS):
            yield name
            yield name.rpartition("/")[0]


@dataclass(frozen=True)
class LayerCosts:
    """Nanoseconds of one inference on one engine, the two models taking turns.

    Attributes:
        float_ns, served_ns: by node of the float graph; a fused layer stands at its first weighted node.
        float_conversions_ns, served_conversions_ns: layers the runtime added between those.
    """

    float_ns: Mapping[str, int]
    served_ns: Mapping[str, int]
    float_conversions_ns: int = 0
    served_conversions_ns: int = 0

    @property
    def sums_ms(self) -> tuple[float, float]:
        """Milliseconds of one inference, all float and as built."""
        floats = sum(self.float_ns.values()) + self.float_conversions_ns
        served = sum(self.served_ns.values()) + self.served_conversions_ns
        return floats / 1e6, served / 1e6

    def added_ms(self, nodes: Sequence[str]) -> float:
        """Return the time that the plan adds to these nodes; negative where it is faster."""
        return sum(self.served_ns.get(n, 0) - self.float_ns.get(n, 0) for n in nodes) / 1e6

    @property
    def added_conversions_ms(self) -> float:
        """Time of the added conversions, plan minus float."""
        return (self.served_conversions_ns - self.float_conversions_ns) / 1e6


def split_by_node(layers: Sequence[LayerTime], graph: GraphView) -> tuple[dict[str, int], int]:
    """Return nanoseconds by node of the graph, and of the layers that are none of its nodes."""
    added = [layer for layer in layers if not by_node([layer], graph)]
    own = [layer for layer in layers if layer not in added]
    return by_node(own, graph), sum(layer.ns for layer in added)
