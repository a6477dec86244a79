"""Two files of one network compared value by value, as if both had chosen alike.

TopK, ArgMax and NonMaxSuppression choose among values. Where two of these differ by less than a rounding, another
precision takes them in another order, and every row behind them moves although each detection is the same. So the
values that are chosen from are compared as they are, and what follows for the choices of the first file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import onnx
from onnx import helper

from avq.build.lower.names import Names
from avq.hookspecs import Session
from avq.measure.sqnr import SqnrMeter
from avq.types import U8, AnyArray

#: Operator -> (inputs that it chooses from, its output of indices).
_CHOOSING = {"TopK": (1, 1), "ArgMax": (1, 0), "ArgMin": (1, 0), "NonMaxSuppression": (2, 0)}


@dataclass(frozen=True)
class _Choice:
    """One choosing node of a file."""

    name: str
    sources: tuple[str, ...]
    indices: str


def sqnr_with_same_choices(
    reference: bytes, other: bytes, opened: Callable[[bytes], Session], pictures: Iterable[U8]
) -> dict[str, float]:
    """Graph output, or "input I of NODE" for what is chosen from -> SQNR of ``other`` to ``reference`` in dB.

    Args:
        reference, other: files of one network: same outputs, choosing nodes of the same names.
        opened: opens one of them; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.

    Raises:
        DataError: the outputs differ in name or shape, or there is no picture.
        ModelError: one of them gives NaN or Inf.
    """
    first, second = (onnx.load_model_from_string(content) for content in (reference, other))
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    ours, theirs = _choices(first), _choices(second)
    meter = SqnrMeter()
    with ExitStack() as open_sessions:
        telling = open_sessions.enter_context(closing(opened(_telling(first, ours).SerializeToString())))
        following: Session | None = None
        for tensor in pictures:
            told = telling.run({picture: tensor})
            chosen = {_given(choice.name): told[choice.indices] for choice in ours}
            if following is None:
                model = _following(second, theirs, {name: array.ndim for name, array in chosen.items()})
                following = open_sessions.enter_context(closing(opened(model.SerializeToString())))
            said = following.run({picture: tensor, **chosen})
            meter.add(_compared(told, outputs, ours), _compared(said, outputs, theirs))
    return meter.result_db()


def _choices(proto: onnx.ModelProto) -> list[_Choice]:
    found = []
    for node in proto.graph.node:
        inputs, output = _CHOOSING.get(node.op_type, (0, 0))
        if inputs:
            found.append(_Choice(node.name, tuple(node.input[:inputs]), node.output[output]))
    return found


def _telling(proto: onnx.ModelProto, choices: Sequence[_Choice]) -> onnx.ModelProto:
    """With what was chosen, and from what, as outputs."""
    _add_outputs(proto, [name for choice in choices for name in (*choice.sources, choice.indices)])
    return proto


def _following(
    proto: onnx.ModelProto, choices: Sequence[_Choice], ranks: Mapping[str, int]
) -> onnx.ModelProto:
    """With the choices as inputs, of ``ranks`` axes, in place of the nodes that made them."""
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


def _given_choice(node: onnx.NodeProto, choice: _Choice, names: Names) -> list[onnx.NodeProto]:
    given = _given(choice.name)
    made = [helper.make_node("Identity", [given], [choice.indices], name=names.fresh(f"{given}/taken"))]
    if node.op_type == "TopK" and node.output[0]:
        axis = next((int(a.i) for a in node.attribute if a.name == "axis"), -1)
        name, inputs = names.fresh(f"{given}/values"), [node.input[0], given]
        made.append(helper.make_node("GatherElements", inputs, [node.output[0]], name=name, axis=axis))
    return made


def _given(node: str) -> str:
    return f"{node}/chosen"


def _add_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """The runtime knows their types; each once, and none that is an output already."""
    known = {value.name for value in proto.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))


def _compared(
    answers: Mapping[str, AnyArray], outputs: Sequence[str], choices: Sequence[_Choice]
) -> dict[str, AnyArray]:
    """What one file said, under names that the other has too."""
    compared = {name: answers[name] for name in outputs}
    for choice in choices:
        for place, source in enumerate(choice.sources):
            compared[f"input {place} of {choice.name}"] = answers[source]
    return compared
