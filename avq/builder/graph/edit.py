"""Small edits of an ONNX graph that every normalising step needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.errors import ModelError
from avq.types import AnyArray


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The bodies of If, Loop and Scan."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]


def reads(node: onnx.NodeProto) -> set[str]:
    """Every tensor the node needs, those its subgraphs take from outside included."""
    names = {name for name in node.input if name}
    for body in subgraphs(node):
        inner = {name for child in body.node for name in reads(child)} | {o.name for o in body.output}
        own = {name for child in body.node for name in child.output}
        names |= inner - own - {i.name for i in body.input} - {i.name for i in body.initializer}
    return names


def constants(graph: onnx.GraphProto) -> dict[str, AnyArray]:
    """Initialisers as arrays."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def set_constant(graph: onnx.GraphProto, name: str, value: AnyArray) -> str:
    """Add or replace an initialiser."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    for existing in graph.initializer:
        if existing.name == name:
            existing.CopyFrom(tensor)
            return name
    graph.initializer.append(tensor)
    return name


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def remove_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
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


def consumer_counts(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes read each tensor; being a graph output counts as one more."""
    counts: Counter[str] = Counter(o.name for o in graph.output)
    for node in graph.node:
        counts.update(name for name in node.input if name)
        counts.update(reads(node) - set(node.input))
    return counts


def fresh_name(graph: onnx.GraphProto, wish: str) -> str:
    """``wish``, or it with a number, unused by any tensor."""
    used = {t for n in graph.node for t in (*n.input, *n.output)}
    used |= {i.name for i in graph.input} | {i.name for i in graph.initializer}
    name, count = wish, 1
    while name in used:
        count += 1
        name = f"{wish}_{count}"
    return name


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a unique name; good names stay."""
    taken = {node.name for node in graph.node if node.name}
    seen: set[str] = set()
    for node in graph.node:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        wish = node.name or f"{node.op_type}_{next((o for o in node.output if o), '')}"
        name, count = wish, 1
        while name in taken:
            count += 1
            name = f"{wish}_{count}"
        node.name = name
        taken.add(name)
        seen.add(name)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Topological order, stable: nodes already in order stay where they are.

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


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The attribute's value as Python sees it, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


def drop_attributes(node: onnx.NodeProto, *names: str) -> None:
    kept = [_kept for _kept in node.attribute if _kept.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
