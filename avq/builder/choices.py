"""The nodes of a file that choose among values (TopK, ArgMax, NonMaxSuppression): told, and given from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from avq.builder.lower.model import Names

#: Operator -> (inputs that it chooses from, its output of indices).
_CHOOSING = {"TopK": (1, 1), "ArgMax": (1, 0), "ArgMin": (1, 0), "NonMaxSuppression": (2, 0)}


@dataclass(frozen=True)
class Choice:
    """One choosing node of a file.

    Attributes:
        sources: tensors it chooses from.
        indices: tensor of what it chose.
        ordered_axis: of ``indices``, along which choices lie in order; None where there is no order.
    """

    name: str
    sources: tuple[str, ...]
    indices: str
    ordered_axis: int | None


def choices_of(proto: onnx.ModelProto) -> list[Choice]:
    """In the order of the nodes."""
    found = []
    for node in proto.graph.node:
        inputs, output = _CHOOSING.get(node.op_type, (0, 0))
        if inputs:
            ordered = {"TopK": _axis(node), "NonMaxSuppression": 0}.get(node.op_type)
            found.append(Choice(node.name, tuple(node.input[:inputs]), node.output[output], ordered))
    return found


def _axis(node: onnx.NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), -1)


def with_told(proto: onnx.ModelProto, choices: Sequence[Choice]) -> onnx.ModelProto:
    """With what was chosen, and from what, as outputs."""
    _add_outputs(proto, [name for choice in choices for name in (*choice.sources, choice.indices)])
    return proto


def with_given(
    proto: onnx.ModelProto, choices: Sequence[Choice], ranks: Mapping[str, int]
) -> onnx.ModelProto:
    """With the choices as inputs `given_name`, of ``ranks`` axes, in place of the nodes that made them."""
    by_name = {choice.name: choice for choice in choices}
    names = Names(proto.graph)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        choice = by_name.get(node.name)
        nodes.extend([node] if choice is None else _given_choice(node, choice, names))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    for name, rank in ranks.items():
        sizes = [f"{name}/{axis}" for axis in range(rank)]
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, sizes))
    _add_outputs(proto, [name for choice in choices for name in choice.sources])
    return proto


def _given_choice(node: onnx.NodeProto, choice: Choice, names: Names) -> list[onnx.NodeProto]:
    given = given_name(choice.name)
    made = [helper.make_node("Identity", [given], [choice.indices], name=names.fresh(f"{given}/taken"))]
    if node.op_type == "TopK" and node.output[0]:
        axis = _axis(node)
        name, inputs = names.fresh(f"{given}/values"), [node.input[0], given]
        made.append(helper.make_node("GatherElements", inputs, [node.output[0]], name=name, axis=axis))
    return made


def given_name(node: str) -> str:
    """The input that stands for the choice of ``node``."""
    return f"{node}/chosen"


def _add_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """The runtime knows their types; each once, and none that is an output already."""
    known = {value.name for value in proto.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
