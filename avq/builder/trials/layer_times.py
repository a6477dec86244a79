"""A runtime's layers, fused and named as it likes, as times of the float graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from avq.toolbox.assemble import COMPUTE_OPS
from avq.types import GraphView, LayerTime

_QUANTIZERS = ("/QuantizeLinear", "/DequantizeLinear")


def by_node(layers: Sequence[LayerTime], graph: GraphView) -> dict[str, int]:
    """node name -> ns.

    A fused layer's time stands at its first weighted node, else at its first node. Layers without a node of
    the graph (format changes, quantizers) are added to the next one that has one: the reader they serve.
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
    """Names of nodes as the file spelled them: runtimes append their own steps to them."""
    for name in layer.nodes:
        if not any(mark in name for mark in _QUANTIZERS):
            yield name
            yield name.rpartition("/")[0]
