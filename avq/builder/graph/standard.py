"""Write a file in standard operators: domain names, sparse weights, fused operators of onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import (
    FreshNames,
    all_graphs,
    attribute,
    drop_attributes,
    replace_nodes,
    subgraphs,
    text_attribute,
)
from avq.builder.graph.opset import opset_of
from avq.errors import ModelError
from avq.types import AnyArray

#: Elements of one weight; a sparse one may declare any number.
_MOST_ELEMENTS = 1 << 28
_SPELT_OUT = "ai.onnx"
_MICROSOFT = "com.microsoft"
#: GroupNormalization of these operator sets scales per group; newer ones scale per channel.
_GROUP_SCALES = range(18, 21)


def empty_default_domain(model: onnx.ModelProto) -> None:
    """Name the default operator set "" everywhere; files may spell it "ai.onnx"."""
    for imports in (model.opset_import, *(function.opset_import for function in model.functions)):
        if not any(entry.domain == _SPELT_OUT for entry in imports):
            continue
        version = max(entry.version for entry in imports if entry.domain in ("", _SPELT_OUT))
        others = [entry for entry in imports if entry.domain not in ("", _SPELT_OUT)]
        del imports[:]
        imports.extend([helper.make_opsetid("", version), *others])
    for node in nodes_within(model):
        if node.domain == _SPELT_OUT:
            node.domain = ""


def nodes_within(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of local functions, and of all bodies in them."""
    yield from _nested(model.graph.node)
    for function in model.functions:
        yield from _nested(function.node)


def _nested(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for body in subgraphs(node):
            yield from _nested(body.node)


def write_out_sparse(model: onnx.ModelProto) -> int:
    """Turn sparse weights and sparse Constant nodes into dense ones; return how many there were."""
    count = 0
    for graph in all_graphs(model.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(numpy_helper.from_array(dense_array(sparse), sparse.values.name))
            count += 1
        del graph.sparse_initializer[:]
    for node in nodes_within(model):
        for item in [item for item in node.attribute if item.HasField("sparse_tensor")]:
            value = numpy_helper.from_array(dense_array(item.sparse_tensor))
            drop_attributes(node, item.name)
            node.attribute.append(helper.make_attribute("value", value))
            count += 1
    return count


def dense_array(sparse: onnx.SparseTensorProto) -> AnyArray:
    """The array of a sparse tensor, whose indices are positions (n,) or coordinates (n, rank)."""
    values = numpy_helper.to_array(sparse.values)
    indices = numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ModelError(
            f"the sparse weight '{sparse.values.name}' is too large",
            seen=f"shape {shape}",
            fix="export the model with dense weights",
        )
    dense = np.zeros(shape, values.dtype)
    places = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
    dense.reshape(-1)[places] = values
    return dense


def standardise(model: onnx.ModelProto) -> list[str]:
    """Rewrite fused operators of onnxruntime and per-group GroupNormalization; return messages.

    Local functions are inlined already; bodies are rewritten too.
    """
    groups = opset_of(model) in _GROUP_SCALES
    names = FreshNames(model.graph)
    rewritten: set[str] = set()
    for graph in all_graphs(model.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            made = _rewritten(graph, node, names, groups=groups)
            rewritten |= {node.op_type} if made is not None else set()
            nodes.extend([node] if made is None else made)
        replace_nodes(graph, nodes)
    return [f"rewritten in standard operators: {', '.join(sorted(rewritten))}"] if rewritten else []


def _rewritten(
    graph: onnx.GraphProto, node: onnx.NodeProto, names: FreshNames, *, groups: bool
) -> list[onnx.NodeProto] | None:
    """The nodes that compute what ``node`` does; None where it stays."""
    writer = _Writer(graph, node, names)
    if node.domain == "" and node.op_type == "GroupNormalization" and groups:
        return writer.group_norm()
    rule = _FUSED.get(node.op_type) if node.domain == _MICROSOFT else None
    return rule(writer) if rule is not None else None


class _Writer:
    """Writes standard nodes for one node."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, names: FreshNames) -> None:
        self._graph, self._node, self._names = graph, node, names
        self._nodes: list[onnx.NodeProto] = []
        self._result: str = node.output[0]

    def group_norm(self) -> list[onnx.NodeProto]:
        """InstanceNormalization of (n, groups, values per group), which scales each group."""
        source, scale, bias = self._node.input
        groups = int(attribute(self._node, "num_groups"))
        rows = self._op("Reshape", [source, self._constant("rows", np.array([0, groups, -1], np.int64))])
        epsilon = float(attribute(self._node, "epsilon", 1e-5))
        normal = self._op("InstanceNormalization", [rows, scale, bias], numbers={"epsilon": epsilon})
        self._op("Reshape", [normal, self._op("Shape", [source])], last=True)
        return self._nodes

    def fused_conv(self) -> list[onnx.NodeProto] | None:
        """Conv, then the sum with a fourth input, then the activation."""
        inputs = list(self._node.input)
        keep = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
        summed = inputs[3] if len(inputs) > 3 else ""
        value = self._op("Conv", [name for name in inputs[:3] if name], like=keep)
        if summed:
            value = self._op("Add", [value, summed])
        params = [float(number) for number in attribute(self._node, "activation_params", [])]
        return self._activated(value, params)

    def fused_gemm(self) -> list[onnx.NodeProto] | None:
        """Gemm, then the activation."""
        keep = ("alpha", "beta", "transA", "transB")
        value = self._op("Gemm", [name for name in self._node.input if name], like=keep)
        numbers = (attribute(self._node, f"activation_{name}") for name in ("alpha", "beta", "gamma"))
        return self._activated(value, [float(number) for number in numbers if number is not None])

    def fused_matmul(self) -> list[onnx.NodeProto] | None:
        """MatMul times alpha; transposed operands need a rank that the file does not give."""
        if any(attribute(self._node, name, 0) for name in ("transA", "transB", "transBatchA", "transBatchB")):
            return None
        alpha = float(attribute(self._node, "alpha", 1.0))
        if alpha == 1.0:
            self._op("MatMul", list(self._node.input), last=True)
            return self._nodes
        value = self._op("MatMul", list(self._node.input))
        self._op("Mul", [value, self._number("alpha", alpha)], last=True)
        return self._nodes

    def gelu(self) -> list[onnx.NodeProto]:
        """0.5 x (1 + erf(x / sqrt(2))); BiasGelu adds its second input first."""
        x = self._node.input[0]
        if len(self._node.input) > 1:
            x = self._op("Add", list(self._node.input[:2]))
        spread = self._op("Erf", [self._op("Mul", [x, self._number("root", float(np.sqrt(0.5)))])])
        share = self._op("Mul", [self._op("Add", [spread, self._number("one", 1.0)]), x])
        self._op("Mul", [share, self._number("half", 0.5)], last=True)
        return self._nodes

    def quick_gelu(self) -> list[onnx.NodeProto]:
        """X sigmoid(alpha x)."""
        x = self._node.input[0]
        alpha = self._number("alpha", float(attribute(self._node, "alpha", 1.702)))
        gate = self._op("Sigmoid", [self._op("Mul", [x, alpha])])
        self._op("Mul", [x, gate], last=True)
        return self._nodes

    def _activated(self, value: str, params: list[float]) -> list[onnx.NodeProto] | None:
        kind = text_attribute(self._node, "activation", "")
        if kind == "Clip" and len(params) == 2:
            ends = [self._number(name, end) for name, end in zip(("min", "max"), params, strict=True)]
            self._op("Clip", [value, *ends], last=True)
            return self._nodes
        names = _ACTIVATIONS.get(kind)
        if names is None or len(params) < len(names):
            return None
        self._op(kind or "Identity", [value], last=True, numbers=dict(zip(names, params, strict=False)))
        return self._nodes

    def _op(
        self,
        op: str,
        inputs: list[str],
        *,
        last: bool = False,
        like: tuple[str, ...] = (),
        numbers: Mapping[str, float] | None = None,
    ) -> str:
        """Add a node; ``like`` names attributes that are copied. The last one writes the old output."""
        output = self._result if last else self._names.fresh(f"{self._result}/{op.lower()}")
        node = helper.make_node(op, inputs, [output], name=self._node.name if last else output)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (numbers or {}).items())
        node.attribute.extend(item for item in self._node.attribute if item.name in like)
        self._nodes.append(node)
        return output

    def _number(self, role: str, value: float) -> str:
        return self._constant(role, np.asarray(value, np.float32))

    def _constant(self, role: str, value: AnyArray) -> str:
        name = self._names.fresh(f"{self._result}/{role}")
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name


#: Activation of a fused operator -> attributes that its parameters are.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
_FUSED: dict[str, Callable[[_Writer], list[onnx.NodeProto] | None]] = {
    "BiasGelu": _Writer.gelu,
    "FusedConv": _Writer.fused_conv,
    "FusedGemm": _Writer.fused_gemm,
    "FusedMatMul": _Writer.fused_matmul,
    "Gelu": _Writer.gelu,
    "QuickGelu": _Writer.quick_gelu,
}
