"""A read-only view of a float network, free of any framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from avq.types.arrays import AnyArray, ArrayRecord


@dataclass(frozen=True, slots=True, eq=False)
class NodeView(ArrayRecord):
    """One operator.

    Attributes:
        name: unique in its graph.
        op: operator type, such as "Conv".
        inputs: tensor names; '' for an absent optional input.
        outputs: tensor names.
        attributes: name -> int, float, string, list of these, or a read-only array.
        domain: operator domain; '' for the default one.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    domain: str = ""

    def __post_init__(self) -> None:
        self._freeze("attributes")


@dataclass(frozen=True, slots=True)
class TensorView:
    """Type of one tensor.

    Attributes:
        name: of the tensor.
        dtype: numpy dtype name, such as "float32"; '' when unknown.
        shape: static shape; -1 for each dimension that could not be inferred.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GraphView(ArrayRecord):
    """The normalised float graph in topological order.

    Attributes:
        nodes: in topological order.
        inputs: graph inputs (the picture; never initialisers), in file order.
        outputs: graph outputs, in file order.
        tensors: every tensor whose type is known, by name.
        constants: initialisers and folded constants, by name; read-only arrays.
        opset: version of the default operator set.
        metadata: the model file's own key/value pairs (class names, preprocessing).
        digest: SHA-256 over structure and weights; plans are bound to it.
    """

    nodes: tuple[NodeView, ...]
    inputs: tuple[TensorView, ...]
    outputs: tuple[TensorView, ...]
    tensors: Mapping[str, TensorView]
    constants: Mapping[str, AnyArray]
    opset: int
    digest: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._freeze("constants")

    @cached_property
    def _by_name(self) -> dict[str, NodeView]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _producers(self) -> dict[str, NodeView]:
        return {out: node for node in self.nodes for out in node.outputs if out}

    @cached_property
    def _consumers(self) -> dict[str, list[tuple[NodeView, int]]]:
        table: dict[str, list[tuple[NodeView, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    table.setdefault(name, []).append((node, index))
        return table

    def node(self, name: str) -> NodeView:
        """Return the node of that name.

        Raises:
            KeyError: the graph has no such node.
        """
        return self._by_name[name]

    def producer(self, tensor: str) -> NodeView | None:
        """Return the node that writes ``tensor``; None for inputs and constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[tuple[NodeView, int]]:
        """Return every (node, input index) that reads ``tensor``, in graph order."""
        return self._consumers.get(tensor, [])

    def is_constant(self, tensor: str) -> bool:
        """Return True for initialisers and folded constants."""
        return tensor in self.constants

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the static shape of ``tensor``; None when a dimension is unknown."""
        if tensor in self.constants:
            return tuple(self.constants[tensor].shape)
        view = self.tensors.get(tensor)
        return view.shape if view is not None and -1 not in view.shape else None

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph outputs, in file order."""
        return tuple(t.name for t in self.outputs)
