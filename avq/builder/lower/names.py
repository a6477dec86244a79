"""Names that no other tensor or node of the model has."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

#: What a tensor's name ends with where it is held in FP16.
HALF = "/fp16"


class Names:
    """Hands out fresh names; deterministic, so the same plan gives the same file."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = set(_all_names(graph))

    def fresh(self, wanted: str) -> str:
        """``wanted``, or with the first free number behind it."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def _all_names(graph: onnx.GraphProto) -> Iterator[str]:
    for group in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (item.name for item in group)
    for node in graph.node:
        yield node.name
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
                yield from _all_names(inner)
