"""Limits of ONNX files: what a small file declares or unpacks to is checked before it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import onnx
from onnx import numpy_helper

from avq.errors import ModelError

#: Nodes with those of functions and subgraphs, each call of a function counted.
MAX_NODES = 50_000
MAX_NAME_CHARS = 4096
#: Trips that a loop may name as a constant.
MAX_TRIPS = 100_000
#: Elements of one input.
MAX_INPUT_ELEMENTS = 1 << 28


def require_sizes(model: onnx.ModelProto, name: str) -> None:
    """Raise ModelError for a model whose size no detection network has.

    Args:
        model: parsed, unchanged.
        name: of the file, for messages.
    """
    fix = "export the model again without it; no detection network needs as much"
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if prod(max(size, 1) for size in shape) > MAX_INPUT_ELEMENTS:
            raise ModelError(
                f"the input '{value.name[:80]}' of {name} is too large",
                seen=f"{shape}, more than {MAX_INPUT_ELEMENTS} elements",
                fix=fix,
            )
    nodes = _count(model)
    if nodes > MAX_NODES:
        raise ModelError(f"{name} has too many nodes", seen=f"{nodes}, more than {MAX_NODES}", fix=fix)
    for node in _every_node(model):
        for text in (node.name, node.op_type, *node.input, *node.output):
            if len(text) > MAX_NAME_CHARS:
                raise ModelError(
                    f"a name in {name} is too long",
                    seen=f"{len(text)} characters, more than {MAX_NAME_CHARS}: {text[:40]}...",
                    fix=fix,
                )
    _require_trips(model, name, fix)


def _count(model: onnx.ModelProto) -> int:
    """Count nodes as if every function was inlined. Raises ModelError on a recursive function."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}
    active: set[tuple[str, str]] = set()

    def of(nodes: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            total += 1 if key not in functions else of_function(key)
            total += sum(of(graph.node) for graph in _subgraphs(node))
        return total

    def of_function(key: tuple[str, str]) -> int:
        if key in active:
            raise ModelError(
                f"the function '{key[1][:80]}' calls itself",
                seen="a recursive function",
                fix="export the model again: ONNX has no recursion",
            )
        if key not in counts:
            active.add(key)
            counts[key] = of(functions[key].node)
            active.discard(key)
        return counts[key]

    return of(model.graph.node)


def _every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting = [list(model.graph.node), *(list(function.node) for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            waiting += [list(graph.node) for graph in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]


def _require_trips(model: onnx.ModelProto, name: str, fix: str) -> None:
    """Refuse loops whose constant number of trips is larger than any network needs."""
    scalars = {one.name: one for one in model.graph.initializer if prod(one.dims) == 1}
    for node in _every_node(model):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and prod(attribute.t.dims) == 1:
                scalars[node.output[0]] = attribute.t
    for node in _every_node(model):
        if node.op_type != "Loop" or not node.input or node.input[0] not in scalars:
            continue
        trips = int(numpy_helper.to_array(scalars[node.input[0]]).reshape(-1)[0])
        if trips > MAX_TRIPS:
            raise ModelError(
                f"the loop '{node.name[:80]}' of {name} runs too often",
                seen=f"{trips} trips, more than {MAX_TRIPS}",
                fix=fix,
            )
