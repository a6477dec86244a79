"""The copy of a quantized file that dialect readers edit, and the quantizers they find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from avq.builder.graph.edit import all_nodes, fresh_name, name_nodes, subgraphs
from avq.builder.graph.fold import fold_constants, lift_constants, remove_identities
from avq.builder.graph.inputs import drop_listed_initializers
from avq.builder.graph.opset import opset_of
from avq.builder.lift.grid import Grid
from avq.types import AnyArray

_ROUNDS = 12


@dataclass(frozen=True, eq=False)
class FoundQuantizer:
    """One quantizer: float tensor in, the same tensor rounded to ``grid`` out.

    Attributes:
        source, result: tensor names in the copy.
        grid: None where its fault leaves the tensor float.
        nodes: its nodes, to be removed.
        clip: grid that limits the values where a fault leaves ``grid`` None, as far as it is known.
    """

    source: str
    result: str
    grid: Grid | None
    nodes: tuple[onnx.NodeProto, ...]
    clip: Grid | None = None


@dataclass
class QuantizedFile:
    """A copy of the file with folded constants, for dialect readers.

    Attributes:
        proto: the copy.
        opset: of the original file.
        computed: tensors that folding turned into constants.
        integer_clips: output of a Clip over integers -> (its input, lowest, highest), as the file had it.
        faults: code -> places, reported at the end.
    """

    proto: onnx.ModelProto
    opset: int
    computed: frozenset[str]
    integer_clips: dict[str, tuple[str, str, str]]
    faults: dict[str, list[str]] = field(default_factory=dict)
    _ranks: dict[str, int] | None = None

    @classmethod
    def of(cls, model: onnx.ModelProto) -> QuantizedFile:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        graph = proto.graph
        drop_listed_initializers(graph)
        name_nodes(graph)
        lift_constants(graph)
        known = {tensor.name for tensor in graph.initializer}
        clips = {
            n.output[0]: (n.input[0], n.input[1], n.input[2])
            for n in graph.node
            if n.op_type == "Clip" and len(n.input) == 3 and n.input[1] and n.input[2]
        }
        for _ in range(_ROUNDS):
            if not remove_identities(graph) + fold_constants(proto):
                break
        computed = {tensor.name for tensor in graph.initializer} - known
        return cls(proto, opset_of(model), frozenset(computed), clips)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Rebuild the tables after an edit of the graph."""
        graph = self.proto.graph
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.writer = {name: node for node in graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                if name:
                    self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def array(self, name: str) -> AnyArray | None:
        """A constant's value; None for what depends on the picture."""
        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def rank(self, name: str) -> int:
        """Number of axes of a tensor, as far as shapes can be inferred; 4 where they cannot."""
        if name in self.constants:
            return len(self.constants[name].dims)
        if self._ranks is None:
            self._ranks = {
                value.name: len(value.type.tensor_type.shape.dim)
                for value in onnx.shape_inference.infer_shapes(self.proto).graph.value_info
                if value.type.tensor_type.HasField("shape")
            }
        return self._ranks.get(name, 4)

    def add_constant(self, wish: str, value: AnyArray) -> str:
        """A new float initialiser; its name."""
        name = fresh_name(self.proto.graph, wish)
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        self.proto.graph.initializer.append(tensor)
        self.constants[name] = self.proto.graph.initializer[-1]
        return name

    def fault(self, code: str, place: str) -> None:
        """Collect a pitfall at a place; one finding lists all of its places."""
        places = self.faults.setdefault(code, [])
        if place not in places:
            places.append(place)

    def nodes_within(self) -> Iterator[tuple[onnx.NodeProto, bool]]:
        """Every node, with whether it lies inside a control-flow body."""
        for node in self.nodes:
            yield node, False
            for body in subgraphs(node):
                yield from ((inner, True) for inner in all_nodes(body))


def numpy_kind(tensor: onnx.TensorProto) -> str:
    """ONNX name of the element type: "INT8", "UINT4", "FLOAT8E4M3FN"."""
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))
