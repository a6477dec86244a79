"""Compare rewritten integer operators with the file one by one, each on the tensors that the file itself computed.

Whole outputs cannot be compared closely: a rounding that falls the other way in one layer moves all that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.equivalence import TOLERANCE, difference_share, drawn_tensors
from avq.builder.lift.dynamic import lifted_products
from avq.builder.lift.parity import Parity
from avq.builder.lift.qoperator import operator_parts
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.types import AnyArray, SessionOptions

_PRODUCTS = frozenset({"ConvInteger", "MatMulInteger"})
_OPTIONS = SessionOptions(threads=1, optimise=False)


def prove_products(source: onnx.ModelProto, engine: Engine) -> Parity | None:
    """Compare every lifted product of a run-time quantized file with the file, on two drawn inputs.

    Args:
        source: the file with one input of fixed shape; left as it is.
        engine: opens both unoptimised.

    Returns:
        The comparison; None where no engine here runs the file.
    """
    products = lifted_products(source)
    results = {value.name: value.name for value in products.graph.output}
    answers = _answers(source, products, results, engine)
    if answers is None:
        return None
    pairs = _pairs(answers, products, results, engine)
    shares = {name: difference_share(expected, actual) for name, expected, actual in pairs}
    place = max(shares, key=lambda name: shares[name])
    text = f"{len(results)} products, largest difference {shares[place]:.1g} of the largest sum"
    if shares[place] <= TOLERANCE:
        return Parity(True, False, f"weights as read give the file's own sums: {text}")
    return Parity(False, False, f"AVQ-Q41 the weights as read differ from the file at '{place}': {text}")


def prove_operators(source: onnx.ModelProto, engine: Engine) -> Parity | None:
    """Compare the Q/DQ form of every integer operator with the file, on two drawn inputs.

    One step of the output's scale is a rounding: integer kernels scale sums in another order.

    Args:
        source: the file with one input of fixed shape; left as it is.
        engine: opens both unoptimised.

    Returns:
        The comparison; None where no engine here runs the file.
    """
    parts, results = operator_parts(source)
    answers = _answers(source, parts, results, engine)
    if answers is None:
        return None
    values = off_by_one = 0
    for name, expected, actual in _pairs(answers, parts, results, engine):
        steps = np.abs(expected.astype(np.int64) - actual.astype(np.int64))
        if steps.max(initial=0) > 1:
            text = f"{int((steps > 1).sum())} of {steps.size} values by more than one step"
            return Parity(False, False, f"AVQ-Q41 the Q/DQ form of '{name}' differs from the file: {text}")
        values, off_by_one = values + steps.size, off_by_one + int(steps.sum())
    text = f"{off_by_one} of {values} values differ, by one step"
    return Parity(True, off_by_one == 0, f"{len(results)} integer operators equal their Q/DQ form: {text}")


_Values = Mapping[str, AnyArray]


def _answers(
    source: onnx.ModelProto, parts: onnx.ModelProto, results: Mapping[str, str], engine: Engine
) -> list[_Values] | None:
    """Values in the file of the inputs and results of ``parts``, per drawn input; None where it cannot be run.

    Args:
        source: the file with one input.
        parts: its inputs are tensors of the file.
        results: output of ``parts`` -> tensor of the file.
        engine: opens the file.
    """
    picture = source.graph.input[0]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(source)
    known = {picture.name, *(value.name for value in exposed.graph.output)}
    wanted = dict.fromkeys((*(value.name for value in parts.graph.input), *results.values()))
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    try:
        session = _open(exposed, engine)
    except AvqError:
        return None
    with closing(session):
        return [
            {
                picture.name: tensor,
                **{n: np.array(v, ndmin=1) for n, v in session.run({picture.name: tensor}).items()},
            }
            for tensor in drawn_tensors(picture)
        ]


def _pairs(
    answers: Sequence[_Values], parts: onnx.ModelProto, results: Mapping[str, str], engine: Engine
) -> Iterator[tuple[str, AnyArray, AnyArray]]:
    """Yield (tensor of the file, its value in the file, its value from ``parts``)."""
    given = [value.name for value in parts.graph.input]
    _declare(parts, answers[0])
    with closing(engine.open(parts.SerializeToString(), _OPTIONS)) as ours:
        for expected in answers:
            actual = ours.run({name: expected[name] for name in given})
            for ours_name, name in results.items():
                yield name, expected[name], np.array(actual[ours_name], ndmin=1)


def _declare(parts: onnx.ModelProto, values: _Values) -> None:
    """Give the inputs the types and shapes of ``values``."""
    for value in parts.graph.input:
        array = values[value.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))


def _open(model: onnx.ModelProto, engine: Engine) -> Session:
    """Open the file; where the runtime has no kernel for signed weights, the same integers moved to unsigned ones."""
    try:
        return engine.open(model.SerializeToString(), _OPTIONS)
    except AvqError:
        return engine.open(with_unsigned_weights(model).SerializeToString(), _OPTIONS)


def with_unsigned_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same integer products with INT8 weights and zero points moved up by 128; ``model`` is left as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    moved: set[str] = set()
    for node in copy.graph.node:
        weight = stored.get(node.input[1]) if node.op_type in _PRODUCTS else None
        if weight is None or weight.data_type != onnx.TensorProto.INT8:
            continue
        if len(node.input) < 4 or not node.input[3]:
            _add_zero_point(copy.graph, node, stored)
        moved |= {node.input[1], node.input[3]}
    for name in moved:
        up = (numpy_helper.to_array(stored[name]).astype(np.int16) + 128).astype(np.uint8)
        stored[name].CopyFrom(numpy_helper.from_array(up, name))
    return copy


def _add_zero_point(
    graph: onnx.GraphProto, node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]
) -> None:
    name = f"{node.name or node.output[0]}/weight_zero_point"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int8), name))
    stored[name] = graph.initializer[-1]
    inputs = [*node.input, "", ""][:3]
    del node.input[:]
    node.input.extend([*inputs, name])
