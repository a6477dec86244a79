"""Scales per block of a tensor: the shapes that TensorRT reads, and the readers its builder survives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from avq.builder.lint.graph import MOVES, LintGraph, attribute, grid_type
from avq.builder.lint.rule import TRT, Hit, error

_PRODUCTS = ("MatMul", "Gemm")


@error(
    22,
    TRT,
    "scales per block that TensorRT cannot read, or cuts into other blocks",
    "whole blocks of one size along the last axis or the one before; TensorRT 10: 4-bit matrices only",
)
def _blocks(graph: LintGraph) -> Iterator[Hit]:
    for node in _blocked(graph):
        seen = _why_unread(graph, node) or _why_not_by_tensorrt_10(graph, node)
        if seen:
            yield node, seen


@error(
    50,
    TRT,
    "4-bit weights with scales per block have other readers than one product: the builder crashes on them",
    "let one MatMul or Gemm read them, on its right side; give others a constant of their own",
)
def _shared_blocks(graph: LintGraph) -> Iterator[Hit]:
    for node in graph.dequantizers():
        four_bits = attribute(node, "block_size", 0) and grid_type(graph, node) == TensorProto.INT4
        if not four_bits or _whole(graph, node) or graph.on_activation(node):
            continue
        readers = _last_readers(graph, node.output[0])
        products = [reader for reader in readers if reader.op_type in _PRODUCTS and reader.index < 2]
        left = [reader.name for reader in products if reader.index == 0]
        if left:
            yield node, f"left side of {left[0]}"
        elif products and len(readers) > 1:
            yield node, f"{len(readers)} readers"


def _blocked(graph: LintGraph) -> Iterator[NodeProto]:
    return (node for node in graph.linears if attribute(node, "block_size", 0))


def _why_unread(graph: LintGraph, node: NodeProto) -> str:
    value, scale = graph.shape(node.input[0]), graph.shape(node.input[1])
    size = attribute(node, "block_size", 0)
    if value is None or scale is None or None in scale:
        return ""
    axis = attribute(node, "axis", 1) % max(len(value), 1)
    if len(value) < 2 or axis < len(value) - 2:
        return f"blocks along axis {axis} of {len(value)}"
    others = [v for i, v in enumerate(value) if i != axis]
    if len(scale) != len(value) or others != [s for i, s in enumerate(scale) if i != axis] or scale == value:
        return f"scale {list(scale)}, tensor {list(value)}"
    length, count = value[axis] or 0, scale[axis] or 0
    fits = count > 0 and length % count == 0 and (count == 1 <= length <= size or length // count == size)
    if not fits:
        return f"{count} blocks of {size} along {length}"
    return ""


def _why_not_by_tensorrt_10(graph: LintGraph, node: NodeProto) -> str:
    """What users of 10.x report as refused; its newer relative for RTX cards takes it."""
    if graph.target != "tensorrt":
        return ""
    if grid_type(graph, node) != TensorProto.INT4:
        return "8-bit integers"
    rank = len(graph.shape(node.input[0]) or (1, 1))
    return f"{rank} axes" if rank != 2 else ""


def _whole(graph: LintGraph, node: NodeProto) -> bool:
    """One block takes up the whole axis."""
    scale = graph.shape(node.input[1]) or ()
    return len(scale) > 0 and scale[attribute(node, "axis", 1) % len(scale)] == 1


@dataclass(frozen=True)
class _Reader:
    """A node and its input; a graph output has no operator."""

    op_type: str
    name: str
    index: int


def _last_readers(graph: LintGraph, name: str) -> list[_Reader]:
    """Who reads the values, looked for behind operators that only move them."""
    found: list[_Reader] = []
    waiting, seen = [name], {name}
    while waiting:
        read = waiting.pop()
        if read in graph.outputs:
            found.append(_Reader("", read, 0))
        for reader in graph.readers.get(read, []):
            if reader.op_type in MOVES and reader.input[0] == read:
                waiting.extend(out for out in reader.output if out not in seen)
                seen.update(reader.output)
            else:
                said = reader.name or reader.op_type
                found.append(_Reader(reader.op_type, said, list(reader.input).index(read)))
    return found
