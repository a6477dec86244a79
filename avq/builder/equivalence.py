"""Numeric comparison of a model file with the graph that avq made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from avq.builder.graph.edit import all_nodes, name_nodes
from avq.builder.graph.inputs import dims
from avq.builder.graph.model import FloatModel, normalise
from avq.builder.graph.opset import MIN_OPSET, opset_of
from avq.builder.index_selection import (
    SelectingNode,
    expose_indices,
    inject_indices,
    injected_name,
    selecting_nodes,
)
from avq.errors import AvqError, ModelError
from avq.hookspecs import Engine
from avq.types import AnyArray, SessionOptions

#: Largest difference that rounding explains, as a share of the largest value of an output.
TOLERANCE = 1e-4
#: The same for a file that computes in float16, which has 10 fraction bits.
HALF_TOLERANCE = 3e-2
#: Operators whose results differ from run to run.
_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

Answer = Literal["equal", "different", "unknown"]


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Result of one comparison.

    Attributes:
        answer: "unknown" if the file cannot be run, has random operators, or chooses among near-equal values.
        difference: largest absolute difference as a share of the largest value of that output; nan if unknown.
        detail: the numbers, or the reason for "unknown".
    """

    answer: Answer
    difference: float
    detail: str


def normalise_checked(
    proto: onnx.ModelProto,
    engine: Engine,
    *,
    where: str = "model",
    input_size_px: tuple[int, int] | None = None,
) -> tuple[FloatModel, Equivalence]:
    """Normalise a float model and compare it with the file in numbers.

    If the onnx version converter changed the numbers, avq's own adapters are used instead.

    Args:
        proto: the file, parsed; left as it is.
        engine: runs both graphs with optimisations off.
        where: name of the file, for messages.
        input_size_px: (width, height), for models that take pictures of any size.

    Returns:
        The normalised model and its comparison, "equal" or "unknown".

    Raises:
        ModelError: as `normalise`, or no normalised graph computes what the file computes; the step and the
            first node are named.
    """
    model = normalise(proto, where=where, input_size_px=input_size_px)
    result = compare_graphs(proto, model.proto, engine)
    if result.answer != "different":
        return model, result
    if opset_of(proto) < MIN_OPSET:
        try:
            own = normalise(proto, where=where, input_size_px=input_size_px, converter=False)
        except ModelError:
            pass  # an operator without an adapter: the error below names the one that the converter changed
        else:
            again = compare_graphs(proto, own.proto, engine)
            if again.answer == "equal":
                note = "the onnx version converter changed the numbers of this file: avq's adapters were used"
                return replace(own, messages=(*own.messages, note)), again
    step, node = _place(proto, engine, input_size_px)
    raise ModelError(
        f"{where}: {step} changes what the model computes",
        seen=f"{result.detail}{f'; first at {node}' if node else ''}",
        fix=f"export the model again with opset {MIN_OPSET} or newer and without local functions",
    )


def compare_graphs(
    source: onnx.ModelProto,
    changed: onnx.ModelProto,
    engine: Engine,
    *,
    pictures: Sequence[AnyArray] = (),
    like: onnx.ValueInfoProto | None = None,
) -> Equivalence:
    """Run both graphs unoptimised on drawn and given inputs and compare every output.

    Outputs are compared by position. Where a graph chooses rows (TopK, NonMaxSuppression, ArgMax), the choice
    of ``source`` is given to ``changed``, and the values it chose from are compared too: near-equal scores may
    be chosen differently after rounding.

    Args:
        source: the file as given, or an earlier form of it.
        changed: the graph to check.
        engine: opens both with runtime optimisations off.
        pictures: inputs of the shape and dtype of ``like``, besides the two drawn ones.
        like: shape and dtype of the drawn inputs; None for the first input of ``changed``.

    Returns:
        The comparison. A source that cannot be run is "unknown", not an error.
    """
    random = sorted({node.op_type for node in all_nodes(source.graph)} & _RANDOM)
    if random:
        return _unknown(f"the model has random operators ({', '.join(random)})")
    first, second = _copied(source), _copied(changed)
    name_nodes(first.graph)
    outputs = [value.name for value in first.graph.output], [value.name for value in second.graph.output]
    if len(outputs[0]) != len(outputs[1]):
        return Equivalence("different", np.inf, f"{len(outputs[0])} outputs became {len(outputs[1])}")
    tolerance = HALF_TOLERANCE if _has_half(source) and not _has_half(changed) else TOLERANCE
    inputs = [*drawn_tensors(like or changed.graph.input[0]), *pictures]
    comparison = _Comparison(first, second, outputs, engine)
    try:
        worst, place = comparison.largest_share(inputs)
    except AvqError as error:
        return _unknown(f"{error.what}: {error.seen}".strip(": "))
    if worst <= tolerance:
        text = f"largest difference {worst:.1g} of the largest value, on {len(inputs)} inputs"
        return Equivalence("equal", worst, text)
    text = f"output '{place}' differs by {worst:.2g} of its largest value"
    if comparison.follows:
        return Equivalence("different", worst, text)
    return Equivalence("unknown", worst, f"{text}; the graph chooses among values that may be near-equal")


class _Comparison:
    """Two graphs and the pairs of their tensors that must agree."""

    def __init__(
        self,
        source: onnx.ModelProto,
        changed: onnx.ModelProto,
        outputs: tuple[list[str], list[str]],
        engine: Engine,
    ) -> None:
        self._source, self._changed, self._engine = source, changed, engine
        self._inputs = _inputs_of(source), _inputs_of(changed)
        self._pairs = list(zip(*outputs, strict=True))
        ours, theirs = selecting_nodes(changed), selecting_nodes(source)
        by_name = {choice.name: choice for choice in ours}
        self.follows = [c.name for c in theirs if c.name in by_name] == [c.name for c in ours] and len(
            theirs
        ) == len(ours)
        self._choices: list[SelectingNode] = theirs if self.follows else []
        for choice in self._choices:
            self._pairs += zip(choice.sources, by_name[choice.name].sources, strict=True)

    def largest_share(self, inputs: Sequence[AnyArray]) -> tuple[float, str]:
        """The largest relative difference over all inputs and pairs, and the source's tensor that shows it."""
        options = SessionOptions(threads=1, optimise=False)
        worst, place = 0.0, ""
        source = expose_indices(self._source, self._choices) if self._choices else self._source
        with closing(self._engine.open(source.SerializeToString(), options)) as theirs:
            answers = [
                {name: np.array(value) for name, value in theirs.run(_feeds(self._inputs[0], tensor)).items()}
                for tensor in inputs
            ]
        with closing(self._engine.open(self._follower(answers[0]).SerializeToString(), options)) as ours:
            for tensor, expected in zip(inputs, answers, strict=True):
                given = {injected_name(choice.name): expected[choice.indices] for choice in self._choices}
                actual = ours.run({**_feeds(self._inputs[1], tensor), **given})
                for wanted, got in self._pairs:
                    share = _share(expected[wanted], np.asarray(actual[got]))
                    if share > worst:
                        worst, place = share, wanted
        return worst, place

    def _follower(self, answers: dict[str, AnyArray]) -> onnx.ModelProto:
        if not self._choices:
            return self._changed
        ranks = {injected_name(choice.name): answers[choice.indices].ndim for choice in self._choices}
        return inject_indices(self._changed, selecting_nodes(self._changed), ranks)


def _place(proto: onnx.ModelProto, engine: Engine, input_size_px: tuple[int, int] | None) -> tuple[str, str]:
    """The step of `normalise` that changed the numbers, and the first node it changed."""
    steps: list[tuple[str, onnx.ModelProto]] = [("reading", proto)]
    last = normalise(proto, input_size_px=input_size_px, trace=steps).proto
    picture = last.graph.input[0]
    for (_, before), (step, after) in pairwise([*steps, ("pruning", last)]):
        if compare_graphs(before, after, engine, like=picture).answer == "different":
            return step, first_difference(before, after, engine, picture)
    return "normalising", ""


def first_difference(
    source: onnx.ModelProto, changed: onnx.ModelProto, engine: Engine, like: onnx.ValueInfoProto
) -> str:
    """The first node, in the order of ``source``, whose output has another value in ``changed``.

    Only tensors that both graphs name are compared.

    Returns:
        "node 'NAME' (OPERATOR)", or "" if no shared tensor differs.
    """
    shared = _tensors(source) & _tensors(changed)
    nodes = [node for node in source.graph.node if shared.intersection(node.output)]
    first, second = _exposed(source, shared), _exposed(changed, shared)
    options = SessionOptions(threads=1, optimise=False)
    picture = drawn_tensors(like)[-1]
    try:
        with (
            closing(engine.open(first.SerializeToString(), options)) as theirs,
            closing(engine.open(second.SerializeToString(), options)) as ours,
        ):
            expected = theirs.run(_feeds(_inputs_of(source), picture))
            actual = ours.run(_feeds(_inputs_of(changed), picture))
    except AvqError:
        return ""
    for node in nodes:
        for name in node.output:
            if name in shared and not _same(expected[name], actual[name], TOLERANCE):
                return f"node '{node.name or name}' ({node.op_type})"
    return ""


def _share(want: AnyArray, got: AnyArray) -> float:
    """Largest difference as a share of the largest value; inf for another shape, dtype kind or NaN pattern."""
    if want.shape != got.shape or (want.dtype.kind in "biu") != (got.dtype.kind in "biu"):
        return float("inf")
    if not want.size:
        return 0.0
    a, b = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], True):
        return float("inf")
    largest = float(np.abs(a[finite]).max(initial=0.0))
    difference = float(np.abs(a - b, where=finite, out=np.zeros_like(a)).max())
    if difference == 0.0:
        return 0.0
    return difference / largest if largest else float("inf")


def _same(want: AnyArray, got: AnyArray, tolerance: float) -> bool:
    return _share(np.asarray(want), np.asarray(got)) <= tolerance


def drawn_tensors(picture: onnx.ValueInfoProto) -> list[AnyArray]:
    """Two inputs of the picture's shape and type: noise in 0..1 and blocks in 0..255."""
    shape = [max(1, size) for size in dims(picture)]
    kind = helper.tensor_dtype_to_np_dtype(picture.type.tensor_type.elem_type)
    random = np.random.default_rng(2026)
    noise = random.random(shape)
    blocks = np.round(random.random(shape) * 255.0)
    for axis in range(2, len(shape)):
        blocks = np.repeat(blocks, 8, axis=axis).take(range(shape[axis]), axis=axis)
    if kind.kind in "iu":
        return [np.round(noise * 127.0).astype(kind), np.minimum(blocks, 127.0).astype(kind)]
    return [noise.astype(kind), blocks.astype(kind)]


def _inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs without weights that are listed as inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _feeds(inputs: Sequence[onnx.ValueInfoProto], picture: AnyArray) -> dict[str, AnyArray]:
    """The same picture in the layout and dtype of each input."""
    return {value.name: _as_input(value, picture) for value in inputs}


def _as_input(value: onnx.ValueInfoProto, picture: AnyArray) -> AnyArray:
    shape = dims(value)
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.type.tensor_type.elem_type == TensorProto.INT64 and len(shape) == 2:
        return np.array([[picture.shape[3], picture.shape[2]]], np.int64)  # DETR's target sizes
    if len(shape) == 3 and picture.ndim == 4:
        picture = picture[0]
    elif len(shape) == 4 and picture.ndim == 4 and shape[3] == 3 and shape[1] != 3:
        picture = picture.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(picture.astype(kind))


def _tensors(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}


def _exposed(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    copy = _copied(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(tensors) - known))
    return copy


def _has_half(model: onnx.ModelProto) -> bool:
    half = TensorProto.FLOAT16
    values = (*model.graph.input, *model.graph.output)
    return any(tensor.data_type == half for tensor in model.graph.initializer) or any(
        value.type.tensor_type.elem_type == half for value in values
    )


def _unknown(reason: str) -> Equivalence:
    return Equivalence("unknown", float("nan"), reason)


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
