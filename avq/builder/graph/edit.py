"""Read and edit ONNX graphs: names, attributes, readers, order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.errors import ModelError
from avq.types import AnyArray


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the bodies of If, Loop and Scan."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield ``graph`` and every graph inside its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from all_graphs(body)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of ``graph``, each followed by the nodes of its bodies."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)


def reads(node: onnx.NodeProto) -> set[str]:
    """Return every tensor that the node reads, with those its subgraphs take from outside."""
    names = {name for name in node.input if name}
    for body in subgraphs(node):
        inner = {name for child in body.node for name in reads(child)} | {o.name for o in body.output}
        own = {name for child in body.node for name in child.output}
        names |= inner - own - {i.name for i in body.input} - {i.name for i in body.initializer}
    return names


def dims(value: onnx.ValueInfoProto) -> list[int]:
    """Return the declared sizes, -1 where dynamic."""
    return [d.dim_value if d.dim_value > 0 else -1 for d in value.type.tensor_type.shape.dim]


def constants(graph: onnx.GraphProto) -> dict[str, AnyArray]:
    """Return the initialisers as arrays, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def set_constant(graph: onnx.GraphProto, name: str, value: AnyArray) -> str:
    """Add or replace an initialiser; return its name."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    for existing in graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return name
    graph.initializer.append(tensor)
    return name


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make ``nodes`` the nodes of the graph; some may be its own."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def remove_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove the initialisers of these names."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def rename_reads(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Make every reader of an old name read the new one, subgraphs included; chains are followed."""
    if not renamed:
        return
    final = {old: _last(renamed, old) for old in renamed}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in final:
                node.input[index] = final[name]
        for body in subgraphs(node):
            rename_reads(body, final)
            for output in body.output:
                output.name = final.get(output.name, output.name)


def _last(renamed: Mapping[str, str], name: str) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def undeclared_inputs(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors that nodes read and neither a node nor an initializer gives, in order of use."""
    given = {tensor.name for tensor in graph.initializer} | {o for node in graph.node for o in node.output}
    return list(dict.fromkeys(n for node in graph.node for n in node.input if n and n not in given))


def consumer_counts(graph: onnx.GraphProto) -> Counter[str]:
    """Count the nodes that read each tensor; being a graph output counts as one more."""
    counts: Counter[str] = Counter(o.name for o in graph.output)
    for node in graph.node:
        counts.update(name for name in node.input if name)
        counts.update(reads(node) - set(node.input))
    return counts


def unused_name(wish: str, taken: Collection[str]) -> str:
    """Return ``wish``, with the first free number from 2 appended when it is in ``taken``."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}_{count}"
    return name


def fresh_name(graph: onnx.GraphProto, wish: str) -> str:
    """Return an unused tensor name, see `unused_name`; nodes may have that name."""
    used = {t for n in graph.node for t in (*n.input, *n.output)}
    used |= {i.name for i in graph.input} | {i.name for i in graph.initializer}
    return unused_name(wish, used)


class FreshNames:
    """Names that no tensor or node of a graph has, bodies included; the same calls give the same names."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = set(_names(graph))

    def fresh(self, wish: str) -> str:
        """Return an unused name and reserve it."""
        name = unused_name(wish, self._taken)
        self._taken.add(name)
        return name


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for inner in all_graphs(graph):
        for group in (inner.input, inner.output, inner.value_info, inner.initializer):
            yield from (item.name for item in group)
        for node in inner.node:
            yield from (node.name, *node.input, *node.output)


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name; unique names stay."""
    taken = {node.name for node in graph.node if node.name}
    seen: set[str] = set()
    for node in graph.node:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        wish = node.name or f"{node.op_type}_{next((o for o in node.output if o), '')}"
        name = node.name = unused_name(wish, taken)
        taken.add(name)
        seen.add(name)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Sort topologically and stably: nodes already in order stay where they are.

    Raises:
        ModelError: a tensor is read that nothing writes, written twice, or depends on itself.
    """
    ready = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    ready |= {s.values.name for s in graph.sparse_initializer}
    _check_writers(graph, ready)
    waiting, ordered = list(graph.node), []
    while waiting:
        late = []
        for node in waiting:
            if reads(node) <= ready:
                ordered.append(node)
                ready.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise _unreadable(late[0], ready, graph)
        waiting = late
    for output in graph.output:
        if output.name not in ready:
            raise ModelError(
                f"nothing computes the graph output '{output.name}'", seen=output.name, fix="export it again"
            )
    if [list(n.output) for n in ordered] != [list(n.output) for n in graph.node]:
        replace_nodes(graph, ordered)


def _check_writers(graph: onnx.GraphProto, given: set[str]) -> None:
    written = set(given)
    for node in graph.node:
        for name in node.output:
            if name and name in written:
                raise ModelError(
                    f"the tensor '{name}' is written twice", seen=f"node '{node.name}'", fix="export it again"
                )
            written.add(name)


def _unreadable(node: onnx.NodeProto, ready: set[str], graph: onnx.GraphProto) -> ModelError:
    written = {name for other in graph.node for name in other.output}
    missing = sorted(reads(node) - ready - written)
    if missing:
        what = f"node '{node.name}' ({node.op_type}) reads '{missing[0]}', which nothing writes"
        return ModelError(what, seen=", ".join(missing[:4]), fix="export the model again")
    return ModelError(
        f"node '{node.name}' depends on its own output", seen=node.op_type, fix="export it again"
    )


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initialisers that no output needs."""
    needed = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed |= reads(node)
    replace_nodes(graph, reversed(kept))
    remove_initializers(graph, {t.name for t in graph.initializer} - needed)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((item for item in node.attribute if item.name == name), None)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the attribute's value in Python types (texts as bytes), or ``default``.

    Raises:
        ValueError: the attribute has no type.
    """
    item = _attribute(node, name)
    return default if item is None else helper.get_attribute_value(item)


def int_attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute, or ``default``; 0 for an attribute of another type, never an error."""
    item = _attribute(node, name)
    if item is None:
        return default
    return int(item.f) if item.type == onnx.AttributeProto.FLOAT else int(item.i)


def ints_attribute(node: onnx.NodeProto, name: str) -> list[int]:
    """Return an attribute that lists integers; empty when it is absent."""
    item = _attribute(node, name)
    return [] if item is None else list(item.ints)


def text_attribute(node: onnx.NodeProto, name: str, default: str) -> str:
    """Return a text attribute, or ``default``."""
    item = _attribute(node, name)
    return default if item is None else str(item.s.decode("utf-8", "replace"))


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node, from any of its attributes; None for texts and sparse tensors."""
    for item in node.attribute:
        if item.name == "value":
            tensor: onnx.TensorProto = item.t
            return tensor
        if item.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(item), np.float32))
        if item.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(item), np.int64))
    return None


def drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    """Remove the attributes of these names."""
    kept = [item for item in node.attribute if item.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
