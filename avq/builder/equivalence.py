"""Numeric comparison of a model file with the graph that avq made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from avq.builder.graph.edit import all_nodes, dims, name_nodes
from avq.builder.graph.foreign import refuse_foreign
from avq.builder.graph.inputs import INT8_OFFSET, take_float32
from avq.builder.graph.model import HALF_STEP, FloatModel, normalise, quantized_ops
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


#: The picture as the file takes it, and as the changed graph takes it.
Feed = tuple[AnyArray, AnyArray]


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
        ModelError: as `normalise`, or ``engine`` runs neither graph, or no normalised graph computes what the file
            computes; the step and the first node are named.
    """
    if not quantized_ops(proto):
        refuse_foreign(proto, where=where)
    model = normalise(proto, where=where, input_size_px=input_size_px)
    result = _compared(proto, model, engine, input_size_px)
    if result.answer == "equal":
        return model, result
    if result.answer == "unknown":
        _require_runnable(model, engine, where)
        return model, result
    if opset_of(proto) < MIN_OPSET:
        try:
            own = normalise(proto, where=where, input_size_px=input_size_px, converter=False)
        except ModelError:
            pass  # an operator without an adapter: the error below names the one that the converter changed
        else:
            again = _compared(proto, own, engine, input_size_px)
            if again.answer == "equal":
                note = "the onnx version converter changed the numbers of this file: avq's adapters were used"
                return replace(own, messages=(*own.messages, note)), again
    raise _changed(proto, result, engine, input_size_px, where)


def check_folded_input(
    proto: onnx.ModelProto,
    source: FloatModel,
    folded: FloatModel,
    feeds: Sequence[Feed],
    engine: Engine,
    *,
    where: str = "model",
) -> Equivalence:
    """Compare the file with the graph that is served in float: normalised, its preprocessing folded in.

    Args:
        proto: the file, parsed.
        source: its normalised graph.
        folded: ``source`` with a uint8 input.
        feeds: drawn and real pictures: as ``source`` takes them, and uint8 tensors.
        engine: runs the graphs with optimisations off.
        where: name of the file, for messages.

    Returns:
        The comparison, "equal" or "unknown".

    Raises:
        ModelError: the graphs differ; the step and the first node are named.
    """
    result = compare_graphs(proto, folded.proto, engine, feeds=feeds, bound=source.bound)
    if result.answer == "different" or _has_half(proto):
        step = compare_graphs(source.proto, folded.proto, engine, feeds=feeds)
        if step.answer == "different":
            node = first_difference(source.proto, folded.proto, engine, feeds[-1])
            raise _difference(where, "folding the preprocessing into the input", step, node)
    if result.answer == "different":
        raise _changed(proto, result, engine, _size_px(source), where, feeds)
    return result


def compare_graphs(
    source: onnx.ModelProto,
    changed: onnx.ModelProto,
    engine: Engine,
    *,
    feeds: Sequence[Feed] = (),
    like: onnx.ValueInfoProto | None = None,
    bound: Mapping[str, AnyArray] | None = None,
) -> Equivalence:
    """Run both graphs unoptimised on drawn or given inputs and compare every output.

    Outputs are compared by position. Where a graph chooses rows (TopK, NonMaxSuppression, ArgMax), the choice
    of ``source`` is given to ``changed``, and the values it chose from are compared too: near-equal scores may
    be chosen differently after rounding.

    Args:
        source: the file as given, or an earlier form of it.
        changed: the graph to check.
        engine: opens both with runtime optimisations off.
        feeds: pictures for both graphs; two are drawn where it is empty.
        like: shape and dtype of the drawn inputs; None for the first input of ``changed``.
        bound: values of further inputs of ``source``.

    Returns:
        The comparison. A source that cannot be run is "unknown", not an error.
    """
    random = sorted({node.op_type for node in all_nodes(source.graph)} & _RANDOM)
    if random:
        return _unknown(f"the model has random operators ({', '.join(random)})")
    first, second = _copied(source), _copied(changed)
    take_float32(first.graph)
    name_nodes(first.graph)
    outputs = [value.name for value in first.graph.output], [value.name for value in second.graph.output]
    if len(outputs[0]) != len(outputs[1]):
        return Equivalence("different", np.inf, f"{len(outputs[0])} outputs became {len(outputs[1])}")
    tolerance = HALF_TOLERANCE if _has_half(source) and not _has_half(changed) else TOLERANCE
    inputs = list(feeds) or [(tensor, tensor) for tensor in drawn_tensors(like or changed.graph.input[0])]
    comparison = _Comparison(first, second, outputs, bound or {}, engine)
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
        bound: Mapping[str, AnyArray],
        engine: Engine,
    ) -> None:
        self._source, self._changed, self._engine, self._bound = source, changed, engine, bound
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

    def largest_share(self, inputs: Sequence[Feed]) -> tuple[float, str]:
        """The largest relative difference over all inputs and pairs, and the source's tensor that shows it."""
        options = SessionOptions(threads=1, optimise=False)
        worst, place = 0.0, ""
        source = expose_indices(self._source, self._choices) if self._choices else self._source
        with closing(self._engine.open(source.SerializeToString(), options)) as theirs:
            fed = [_feeds(self._inputs[0], picture, self._bound) for picture, _ in inputs]
            answers = [{name: np.array(value) for name, value in theirs.run(one).items()} for one in fed]
        with closing(self._engine.open(self._follower(answers[0]).SerializeToString(), options)) as ours:
            for (_, picture), expected in zip(inputs, answers, strict=True):
                given = {injected_name(choice.name): expected[choice.indices] for choice in self._choices}
                actual = ours.run({**_feeds(self._inputs[1], picture, self._bound), **given})
                for wanted, got in self._pairs:
                    share = difference_share(expected[wanted], np.asarray(actual[got]))
                    if share > worst:
                        worst, place = share, wanted
        return worst, place

    def _follower(self, answers: dict[str, AnyArray]) -> onnx.ModelProto:
        if not self._choices:
            return self._changed
        ranks = {injected_name(choice.name): answers[choice.indices].ndim for choice in self._choices}
        return inject_indices(self._changed, selecting_nodes(self._changed), ranks)


def _compared(
    proto: onnx.ModelProto, model: FloatModel, engine: Engine, size_px: tuple[int, int] | None
) -> Equivalence:
    """The file against its normalised graph; a float16 file also against its own graph in float32, closely."""
    result = compare_graphs(proto, model.proto, engine, bound=model.bound)
    if result.answer != "equal" or not _has_half(proto):
        return result
    steps: list[tuple[str, onnx.ModelProto]] = []
    normalise(proto, input_size_px=size_px, trace=steps)
    wide = next(after for step, after in steps if step == HALF_STEP)
    close = compare_graphs(wide, model.proto, engine, like=model.proto.graph.input[0], bound=model.bound)
    return close if close.answer == "different" else result


def _require_runnable(model: FloatModel, engine: Engine, where: str) -> None:
    """Refuse a graph that the reference cannot open: nothing of a build could be compared with it."""
    try:
        engine.open(model.proto.SerializeToString(), SessionOptions(threads=1, optimise=False)).close()
    except AvqError as error:
        double = any(
            t.data_type == TensorProto.DOUBLE and len(t.dims) > 1 for t in model.proto.graph.initializer
        )
        raise ModelError(
            f"{where}: {engine.name} cannot run the model{', which has float64 weights' if double else ''}",
            seen=error.seen or error.what,
            fix="export it in float32 (model.float() in PyTorch)"
            if double
            else "export it with operators and types that onnxruntime has",
        ) from None


def _changed(
    proto: onnx.ModelProto,
    result: Equivalence,
    engine: Engine,
    size_px: tuple[int, int] | None,
    where: str,
    feeds: Sequence[Feed] = (),
) -> ModelError:
    step, node = _place(proto, engine, size_px, feeds)
    return _difference(where, step, result, node)


def _difference(where: str, step: str, result: Equivalence, node: str) -> ModelError:
    return ModelError(
        f"{where}: {step} changes what the model computes",
        seen=f"{result.detail}{f'; first at {node}' if node else ''}",
        fix=f"export the model again with opset {MIN_OPSET} or newer and without local functions",
    )


def _place(
    proto: onnx.ModelProto, engine: Engine, size_px: tuple[int, int] | None, feeds: Sequence[Feed]
) -> tuple[str, str]:
    """The step of `normalise` that changed the numbers, and the first node it changed."""
    steps: list[tuple[str, onnx.ModelProto]] = [("reading", proto)]
    last = normalise(proto, input_size_px=size_px, trace=steps)
    picture = last.proto.graph.input[0]
    same = [(tensor, tensor) for tensor, _ in feeds] or [(t, t) for t in drawn_tensors(picture)]
    for (_, before), (step, after) in pairwise([*steps, ("pruning", last.proto)]):
        if compare_graphs(before, after, engine, feeds=same, bound=last.bound).answer == "different":
            return step, first_difference(before, after, engine, same[-1], last.bound)
    return "normalising", ""


def _size_px(model: FloatModel) -> tuple[int, int]:
    height, width = model.view.inputs[0].shape[2:4]
    return width, height


def first_difference(
    source: onnx.ModelProto,
    changed: onnx.ModelProto,
    engine: Engine,
    feed: Feed,
    bound: Mapping[str, AnyArray] | None = None,
) -> str:
    """The first node, in the order of ``source``, whose output has another value in ``changed``.

    Only tensors that both graphs name are compared.

    Returns:
        "node 'NAME' (OPERATOR)", or "" if no shared tensor differs.
    """
    shared = _tensors(source) & _tensors(changed)
    nodes = [node for node in source.graph.node if shared.intersection(node.output)]
    first, second = _exposed(source, shared), _exposed(changed, shared)
    take_float32(first.graph)
    options = SessionOptions(threads=1, optimise=False)
    given = bound or {}
    try:
        with (
            closing(engine.open(first.SerializeToString(), options)) as theirs,
            closing(engine.open(second.SerializeToString(), options)) as ours,
        ):
            expected = theirs.run(_feeds(_inputs_of(first), feed[0], given))
            actual = ours.run(_feeds(_inputs_of(second), feed[1], given))
    except AvqError:
        return ""
    for node in nodes:
        for name in node.output:
            if name in shared and not _same(expected[name], actual[name], TOLERANCE):
                return f"node '{node.name or name}' ({node.op_type})"
    return ""


def difference_share(want: AnyArray, got: AnyArray) -> float:
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
    return difference_share(np.asarray(want), np.asarray(got)) <= tolerance


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
        largest = min(255, int(np.iinfo(kind).max))
        return [np.round(noise * largest).astype(kind), np.minimum(blocks, largest).astype(kind)]
    return [noise.astype(kind), blocks.astype(kind)]


def _inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs without weights that are listed as inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _feeds(
    inputs: Sequence[onnx.ValueInfoProto], picture: AnyArray, bound: Mapping[str, AnyArray]
) -> dict[str, AnyArray]:
    """The same picture in the layout and dtype of each input that has no bound value."""
    return {v.name: bound[v.name] if v.name in bound else _as_input(v, picture) for v in inputs}


def _as_input(value: onnx.ValueInfoProto, picture: AnyArray) -> AnyArray:
    shape, element = dims(value), value.type.tensor_type.elem_type
    kind = helper.tensor_dtype_to_np_dtype(element)
    if len(shape) == 3 and picture.ndim == 4:
        picture = picture[0]
    elif len(shape) == 4 and picture.ndim == 4 and shape[3] == 3 and shape[1] != 3:
        picture = picture.transpose(0, 2, 3, 1)
    if element == TensorProto.INT8 and picture.dtype == np.uint8:
        picture = picture.astype(np.int16) - INT8_OFFSET
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
