"""Which tensor of the float graph an entry's name means, and the edges a grid belongs on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from avq.toolbox import Placement, place, residual_identity_edges
from avq.types import Edge, GraphView


@dataclass(frozen=True)
class Names:
    """Names of the exported model, looked up in its normalised float graph."""

    graph: GraphView

    def find(self, name: str) -> str | None:
        """The tensor that ``name`` means; None when the graph has none.

        The picture is the float tensor behind the preprocessing that a build writes into the graph.
        """
        if any(name == picture.name for picture in self.graph.inputs):
            return self._behind_preprocessing(name)
        known = self.graph.is_constant(name) or self.graph.producer(name) is not None
        return name if known else None

    def _behind_preprocessing(self, name: str) -> str:
        picture = self.graph.tensors.get(name)
        if picture is None or picture.dtype != "uint8":
            return name
        (cast, _), *others = self.graph.consumers(name)
        if others or cast.op != "Cast" or not cast.outputs[0].startswith(f"{name}_cast"):
            return name  # a network that takes bytes itself
        tensor = cast.outputs[0]
        for op in ("Mul", "Add"):
            readers = self.graph.consumers(tensor)
            if (
                len(readers) == 1
                and readers[0][0].op == op
                and f"{name}_{op.lower()}_by" in readers[0][0].inputs
            ):
                tensor = readers[0][0].outputs[0]
        return tensor

    @cached_property
    def placements(self) -> tuple[Placement, ...]:
        """Every weighted operator that could run in integers."""
        return place(self.graph)

    @cached_property
    def weight_axes(self) -> Mapping[str, int | None]:
        """Output-channel axis of every weight."""
        return {p.weight.tensor: p.weight_axis for p in self.placements if p.weight is not None}

    def whole(self, tensor: str) -> Edge:
        """The edge for all readers; a constant with a single reader is named with it, as plans do."""
        readers = self.graph.consumers(tensor)
        if self.graph.is_constant(tensor) and len(readers) == 1:
            return Edge(tensor, readers[0][0].name, readers[0][1])
        return Edge(tensor)

    def integer_edges(self, tensors: Collection[str]) -> list[Edge]:
        """Edges in front of weighted operators, and of residual additions, whose tensor is among ``tensors``."""
        chosen = [p for p in self.placements if all(edge.tensor in tensors for edge in p.activations)]
        edges = [*(e for p in chosen for e in p.activations), *residual_identity_edges(self.graph, chosen)]
        return [edge for edge in dict.fromkeys(edges) if edge.tensor in tensors]
