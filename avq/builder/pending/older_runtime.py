"""A file with FP16 beside INT8 in operators that older runtimes have: the same arithmetic with casts spelled out.

Only operator set 23 lets Q read FP16 and DQ write it where scales are FP32. onnxruntime 1.23, the last one for Python
3.10, has no kernels for that.
"""

from __future__ import annotations

import onnx
from onnx import helper

from avq.builder.lower.model import Names

_OPSET, _IR = 21, 10


def in_opset_21(model: bytes) -> bytes | None:
    """``model`` with the bits of its answers; None where it has that operator set already."""
    proto = onnx.load_model_from_string(model)
    versions = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if all(entry.version <= _OPSET for entry in versions):
        return None
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    names = Names(proto.graph)
    nodes = [made for node in proto.graph.node for made in _spelled_out(node, types, names)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)
    for entry in versions:
        entry.version = _OPSET
    proto.ir_version = min(proto.ir_version, _IR)
    content: bytes = proto.SerializeToString()
    return content


def _spelled_out(node: onnx.NodeProto, types: dict[str, int], names: Names) -> list[onnx.NodeProto]:
    """The node and its cast; casts to FP16 and back next to each other onnxruntime drops, with their rounding."""
    if node.op_type == "QuantizeLinear" and node.input[1] in types:
        source, same, wide = node.input[0], *_fresh(node.input[0], names)
        node.input[0] = wide
        return [_identity(source, same), _cast(same, wide, types[node.input[1]]), node]
    told = [a for a in node.attribute if a.name == "output_dtype"]
    if node.op_type == "DequantizeLinear" and told:
        result, same, wide = node.output[0], *_fresh(node.output[0], names)
        node.output[0] = wide
        node.attribute.remove(told[0])
        return [node, _cast(wide, same, told[0].i), _identity(same, result)]
    return [node]


def _fresh(tensor: str, names: Names) -> tuple[str, str]:
    return names.fresh(f"{tensor}/same"), names.fresh(f"{tensor}/in_the_type_of_its_scale")


def _identity(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [result], name=f"{source}/{result}/identity")


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{source}/{result}/cast", to=to)
