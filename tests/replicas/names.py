"""Random names for every node and tensor of an ONNX file: whoever reads it must go by its structure."""

from __future__ import annotations

import random

import onnx


def randomised(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy whose nodes, tensors, inputs and outputs bear random names; its order and numbers stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    draw = random.Random(seed)
    known: dict[str, str] = {"": ""}

    def name(old: str) -> str:
        if old not in known:
            known[old] = f"n{draw.getrandbits(48):012x}"
        return known[old]

    graph = copy.graph
    for node in graph.node:
        node.name = f"n{draw.getrandbits(48):012x}"
        node.doc_string = ""
        for values in (node.input, node.output):
            values[:] = [name(old) for old in values]
    for entry in (*graph.initializer, *graph.input, *graph.output):
        entry.name = name(entry.name)
    del graph.value_info[:]
    graph.name = name(graph.name)
    return copy
