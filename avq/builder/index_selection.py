"""The nodes of a file that choose among values (TopK, ArgMax, NonMaxSuppression): told, and given from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from avq.builder.graph.edit import FreshNames, int_attribute, replace_nodes
from avq.hookspecs import Session
from avq.measure.fidelity import SqnrMeter, sqnr_db
from avq.measure.golden import RowPairing
from avq.types import U8, AnyArray

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
            ordered = {"TopK": int_attribute(node, "axis", -1), "NonMaxSuppression": 0}.get(node.op_type)
            found.append(Choice(node.name, tuple(node.input[:inputs]), node.output[output], ordered))
    return found


def with_told(proto: onnx.ModelProto, choices: Sequence[Choice]) -> onnx.ModelProto:
    """With what was chosen, and from what, as outputs."""
    _add_outputs(proto, [name for choice in choices for name in (*choice.sources, choice.indices)])
    return proto


def with_given(
    proto: onnx.ModelProto, choices: Sequence[Choice], ranks: Mapping[str, int]
) -> onnx.ModelProto:
    """With the choices as inputs `given_name`, of ``ranks`` axes, in place of the nodes that made them."""
    by_name = {choice.name: choice for choice in choices}
    names = FreshNames(proto.graph)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        choice = by_name.get(node.name)
        nodes.extend([node] if choice is None else _given_choice(node, choice, names))
    replace_nodes(proto.graph, nodes)
    for name, rank in ranks.items():
        sizes = [f"{name}/{axis}" for axis in range(rank)]
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, sizes))
    _add_outputs(proto, [name for choice in choices for name in choice.sources])
    return proto


def _given_choice(node: onnx.NodeProto, choice: Choice, names: FreshNames) -> list[onnx.NodeProto]:
    given = given_name(choice.name)
    made = [helper.make_node("Identity", [given], [choice.indices], name=names.fresh(f"{given}/taken"))]
    if node.op_type == "TopK" and node.output[0]:
        axis = int_attribute(node, "axis", -1)
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


# Finds the outputs whose rows a graph chose: other choices are put in, and it is seen which outputs
# turn round.

#: What is summed over rows in another order differs by rounding.
_SAME_DB = 60.0


def chosen_rows(model: bytes, opened: Callable[[bytes], Session], pictures: Iterable[U8]) -> RowPairing:
    """The outputs of ``model`` whose rows TopK or NonMaxSuppression put in order.

    Where one choice follows another, the last one orders the rows.

    Args:
        model: ONNX, float.
        opened: opens a model; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.
    """
    first, second = onnx.load_model_from_string(model), onnx.load_model_from_string(model)
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    choices = [choice for choice in choices_of(first) if choice.ordered_axis is not None]
    places: dict[str, tuple[int, int]] = {}
    if not choices:
        return RowPairing()
    with closing(opened(with_told(first, choices).SerializeToString())) as teller:
        answers = [(tensor, _copied(teller.run({picture: tensor}))) for tensor in pictures]
    ranks = {given_name(choice.name): answers[0][1][choice.indices].ndim for choice in choices}
    with closing(opened(with_given(second, choices, ranks).SerializeToString())) as follower:
        for tensor, told in answers:
            feeds = {picture: tensor, **{given_name(one.name): told[one.indices] for one in choices}}
            plain = _copied(follower.run(feeds))
            for number, choice in enumerate(choices):
                turned = follower.run({**feeds, **_turned(choice, told)})
                for name in outputs:
                    if (axis := _turned_axis(plain[name], turned[name])) is not None:
                        places[name] = (axis, number)
    return RowPairing(places)


def _copied(outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: np.array(value) for name, value in outputs.items()}


def _turned(choice: Choice, told: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """The last one first."""
    axis = choice.ordered_axis or 0
    return {given_name(choice.name): np.ascontiguousarray(np.flip(told[choice.indices], axis))}


def _turned_axis(plain: AnyArray, turned: AnyArray) -> int | None:
    """The axis along which ``turned`` holds the slices of ``plain`` in another order; None where nothing moved."""
    if plain.shape != turned.shape or np.array_equal(plain, turned, equal_nan=plain.dtype.kind == "f"):
        return None
    for axis in range(plain.ndim):
        if plain.shape[axis] > 1 and (_flipped(plain, turned, axis) or _same_slices(plain, turned, axis)):
            return axis
    return None


def _flipped(plain: AnyArray, turned: AnyArray, axis: int) -> bool:
    if not (np.isfinite(plain).all() and np.isfinite(turned).all()):
        return False
    return sqnr_db(np.flip(plain, axis), turned) >= _SAME_DB > sqnr_db(plain, turned)


def _same_slices(plain: AnyArray, turned: AnyArray, axis: int) -> bool:
    """The same ones to the last bit, where padding or what else stays in its place."""
    ours, theirs = (
        sorted(np.ascontiguousarray(one).tobytes() for one in np.moveaxis(array, axis, 0))
        for array in (plain, turned)
    )
    return ours == theirs


# Two files of one network compared value by value, as if both had chosen alike.


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
    ours, theirs = choices_of(first), choices_of(second)
    meter = SqnrMeter()
    with ExitStack() as open_sessions:
        teller = open_sessions.enter_context(closing(opened(with_told(first, ours).SerializeToString())))
        follower: Session | None = None
        for tensor in pictures:
            told = teller.run({picture: tensor})
            chosen = {given_name(choice.name): told[choice.indices] for choice in ours}
            if follower is None:
                model = with_given(second, theirs, {name: array.ndim for name, array in chosen.items()})
                follower = open_sessions.enter_context(closing(opened(model.SerializeToString())))
            said = follower.run({picture: tensor, **chosen})
            meter.add(_compared(told, outputs, ours), _compared(said, outputs, theirs))
    return meter.result_db()


def _compared(
    answers: Mapping[str, AnyArray], outputs: Sequence[str], choices: Sequence[Choice]
) -> dict[str, AnyArray]:
    """What one file said, under names that the other has too."""
    compared = {name: answers[name] for name in outputs}
    for choice in choices:
        for place, source in enumerate(choice.sources):
            compared[f"input {place} of {choice.name}"] = answers[source]
    return compared
