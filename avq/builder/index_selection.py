"""Nodes that select indices (TopK, ArgMax, ArgMin, NonMaxSuppression): expose, inject and compare them.

Two files of one network may select differently by rounding. With the indices of one injected into the other, their
outputs are compared value by value.
"""

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
_SELECTING = {"TopK": (1, 1), "ArgMax": (1, 0), "ArgMin": (1, 0), "NonMaxSuppression": (2, 0)}


@dataclass(frozen=True)
class SelectingNode:
    """One node that selects indices.

    Attributes:
        sources: tensors that it selects from.
        indices: tensor of the selected indices.
        ordered_axis: axis of ``indices`` along which they are sorted; None without an order.
    """

    name: str
    sources: tuple[str, ...]
    indices: str
    ordered_axis: int | None


def selecting_nodes(proto: onnx.ModelProto) -> list[SelectingNode]:
    """Selecting nodes of a model, in file order."""
    found = []
    for node in proto.graph.node:
        inputs, output = _SELECTING.get(node.op_type, (0, 0))
        if inputs:
            ordered = {"TopK": int_attribute(node, "axis", -1), "NonMaxSuppression": 0}.get(node.op_type)
            found.append(SelectingNode(node.name, tuple(node.input[:inputs]), node.output[output], ordered))
    return found


def expose_indices(proto: onnx.ModelProto, selections: Sequence[SelectingNode]) -> onnx.ModelProto:
    """Make the indices, and the tensors they are selected from, outputs of ``proto``, in place."""
    _add_outputs(
        proto, [name for selecting in selections for name in (*selecting.sources, selecting.indices)]
    )
    return proto


def inject_indices(
    proto: onnx.ModelProto, selections: Sequence[SelectingNode], ranks: Mapping[str, int]
) -> onnx.ModelProto:
    """Replace the selecting nodes by inputs `injected_name` with ``ranks`` axes, in place."""
    by_name = {selecting.name: selecting for selecting in selections}
    names = FreshNames(proto.graph)
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        selecting = by_name.get(node.name)
        nodes.extend([node] if selecting is None else _injected_nodes(node, selecting, names))
    replace_nodes(proto.graph, nodes)
    for name, rank in ranks.items():
        sizes = [f"{name}/{axis}" for axis in range(rank)]
        proto.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, sizes))
    _add_outputs(proto, [name for selecting in selections for name in selecting.sources])
    return proto


def _injected_nodes(
    node: onnx.NodeProto, selecting: SelectingNode, names: FreshNames
) -> list[onnx.NodeProto]:
    given = injected_name(selecting.name)
    made = [helper.make_node("Identity", [given], [selecting.indices], name=names.fresh(f"{given}/taken"))]
    if node.op_type == "TopK" and node.output[0]:
        axis = int_attribute(node, "axis", -1)
        name, inputs = names.fresh(f"{given}/values"), [node.input[0], given]
        made.append(helper.make_node("GatherElements", inputs, [node.output[0]], name=name, axis=axis))
    return made


def injected_name(node: str) -> str:
    """Name of the input with the indices of ``node``."""
    return f"{node}/chosen"


def _add_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """Add outputs without types, each once."""
    known = {value.name for value in proto.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))


# Outputs whose rows a graph selects: those that change when the indices are reversed.

#: Sums over rows in another order differ by rounding.
_SAME_DB = 60.0


def selected_rows(model: bytes, open_model: Callable[[bytes], Session], pictures: Iterable[U8]) -> RowPairing:
    """The outputs of ``model`` whose rows TopK or NonMaxSuppression put in order.

    Where one selecting node follows another, the last one orders the rows.

    Args:
        model: ONNX, float.
        open_model: opens a model; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.
    """
    first, second = onnx.load_model_from_string(model), onnx.load_model_from_string(model)
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    selections = [selecting for selecting in selecting_nodes(first) if selecting.ordered_axis is not None]
    places: dict[str, tuple[int, int]] = {}
    if not selections:
        return RowPairing()
    with closing(open_model(expose_indices(first, selections).SerializeToString())) as exposing:
        outputs_by_name = [(tensor, _copied(exposing.run({picture: tensor}))) for tensor in pictures]
    ranks = {
        injected_name(selecting.name): outputs_by_name[0][1][selecting.indices].ndim
        for selecting in selections
    }
    with closing(open_model(inject_indices(second, selections, ranks).SerializeToString())) as injected:
        for tensor, reference_outputs in outputs_by_name:
            feeds = {
                picture: tensor,
                **{injected_name(s.name): reference_outputs[s.indices] for s in selections},
            }
            plain = _copied(injected.run(feeds))
            for number, selecting in enumerate(selections):
                turned = injected.run({**feeds, **_turned(selecting, reference_outputs)})
                for name in outputs:
                    if (axis := _turned_axis(plain[name], turned[name])) is not None:
                        places[name] = (axis, number)
    return RowPairing(places)


def _copied(outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    return {name: np.array(value) for name, value in outputs.items()}


def _turned(selecting: SelectingNode, reference_outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Input with the indices in reverse order."""
    axis = selecting.ordered_axis or 0
    return {
        injected_name(selecting.name): np.ascontiguousarray(
            np.flip(reference_outputs[selecting.indices], axis)
        )
    }


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


# Comparison of two files with the same indices.


def sqnr_with_same_indices(
    reference: bytes, other: bytes, open_model: Callable[[bytes], Session], pictures: Iterable[U8]
) -> dict[str, float]:
    """Graph output, or "input I of NODE" for what is chosen from -> SQNR of ``other`` to ``reference`` in dB.

    Args:
        reference, other: files of one network: same outputs, choosing nodes of the same names.
        open_model: opens one of them; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.

    Raises:
        DataError: the outputs differ in name or shape, or there is no picture.
        ModelError: one of them gives NaN or Inf.
    """
    first, second = (onnx.load_model_from_string(content) for content in (reference, other))
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    ours, theirs = selecting_nodes(first), selecting_nodes(second)
    meter = SqnrMeter()
    with ExitStack() as open_sessions:
        exposing = open_sessions.enter_context(
            closing(open_model(expose_indices(first, ours).SerializeToString()))
        )
        injected: Session | None = None
        for tensor in pictures:
            reference_outputs = exposing.run({picture: tensor})
            indices = {
                injected_name(selecting.name): reference_outputs[selecting.indices] for selecting in ours
            }
            if injected is None:
                model = inject_indices(second, theirs, {name: array.ndim for name, array in indices.items()})
                injected = open_sessions.enter_context(closing(open_model(model.SerializeToString())))
            other_outputs = injected.run({picture: tensor, **indices})
            meter.add(_compared(reference_outputs, outputs, ours), _compared(other_outputs, outputs, theirs))
    return meter.result_db()


def _compared(
    outputs_by_name: Mapping[str, AnyArray], outputs: Sequence[str], selections: Sequence[SelectingNode]
) -> dict[str, AnyArray]:
    """Outputs and selected-from tensors under names that both files have."""
    compared = {name: outputs_by_name[name] for name in outputs}
    for selecting in selections:
        for place, source in enumerate(selecting.sources):
            compared[f"input {place} of {selecting.name}"] = outputs_by_name[source]
    return compared
