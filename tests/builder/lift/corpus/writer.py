"""The part of writing a quantized file that every dialect shares: what is quantized, with which ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.builder.lift.corpus.nets import SIDE_PX, Net

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def pictures(count: int = 3, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-1, 1, (1, 3, SIDE_PX, SIDE_PX)).astype(np.float32) for _ in range(count)]


def run(model: onnx.ModelProto | bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """onnxruntime with every optimisation off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@dataclass
class Writer:
    """Rewires a float net through quantizers; a dialect says how one is written.

    Attributes:
        everything: quantize what Add, Concat, pooling and the outputs pass on, as onnxruntime does.
        own_pairs: one pair per reader instead of one per tensor.
        skip: nodes left float.
    """

    net: Net
    everything: bool = False
    own_pairs: bool = False
    skip: Sequence[str] = ()
    opset: int = 17
    producer: str = ""
    domains: Sequence[str] = ()
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, onnx.TensorProto] = field(default_factory=dict)

    # what a dialect overrides ------------------------------------------------------------------------------
    def activation(self, tensor: str, low: float, high: float, result: str) -> None:
        """Write the quantizer of an activation; ``result`` is the dequantized tensor's name."""
        raise AssertionError

    def weight(self, name: str, value: np.ndarray, axis: int | None) -> str:
        """Write a weight; the name of its dequantized tensor."""
        raise AssertionError

    def bias(self, name: str, value: np.ndarray, scale: np.ndarray) -> str:
        """Write a bias; float unless the dialect quantizes it."""
        return self.store(name, value)

    # the common rest -----------------------------------------------------------------------------------------
    def write(self) -> onnx.ModelProto:
        self.ranges = self._ranges()
        self.done: dict[str, str] = {}
        self.scales: dict[str, np.ndarray] = {}
        for node in self.net.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name not in self.skip:
                self._rewire(copy, node)
            for name in copy.input:
                if name in self.net.weights and name not in self.tensors:
                    self.store(name, self.net.weights[name])
            self.nodes.append(copy)
        self._outputs()
        return self._model()

    def _rewire(self, copy: onnx.NodeProto, node: onnx.NodeProto) -> None:
        if node.op_type in WEIGHTED:
            for index in (0, 1):
                copy.input[index] = self._operand(node, index)
            if len(node.input) > 2 and node.input[2]:
                scale = self.scales.get(node.input[0], 1.0) * self.scales.get(node.input[1], 1.0)
                copy.input[2] = self.bias(node.input[2], self.net.weights[node.input[2]], np.asarray(scale))
        elif self.everything and node.op_type in ("Add", "Concat", "Mul", "GlobalAveragePool"):
            for index, name in enumerate(node.input):
                copy.input[index] = self._through(name, node)

    def _operand(self, node: onnx.NodeProto, index: int) -> str:
        name = node.input[index]
        if name in self.net.weights:
            return self.weight(name, self.net.weights[name], output_axis(node, self.net.weights[name]))
        return self._through(name, node)

    def _through(self, tensor: str, reader: onnx.NodeProto) -> str:
        key = f"{tensor}_for_{reader.name}" if self.own_pairs else tensor
        if key not in self.done:
            self.done[key] = f"{key}_dq"
            self.activation(tensor, *self.ranges[tensor], result=self.done[key])
        return self.done[key]

    def _outputs(self) -> None:
        if not self.everything:
            return
        for name in self.net.outputs:
            for node in self.nodes:
                node.output[:] = [f"{name}_float" if o == name else o for o in node.output]
            self.ranges[f"{name}_float"] = self.ranges[name]
            self.activation(f"{name}_float", *self.ranges[name], result=name)

    def _ranges(self) -> dict[str, tuple[float, float]]:
        model = self.net.model()
        seen: dict[str, list[Any]] = {name: [] for node in model.graph.node for name in node.output}
        kept = list(model.graph.output)
        del model.graph.output[:]
        model.graph.output.extend(
            [*(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in seen)]
        )
        assert kept
        ranges: dict[str, list[np.ndarray]] = {"x": []}
        for picture in pictures():
            ranges["x"].append(picture)
            for name, value in run(model, {"x": picture}).items():
                ranges.setdefault(name, []).append(value)
        return {
            n: (float(min(v.min() for v in vs)), float(max(v.max() for v in vs))) for n, vs in ranges.items()
        }

    def store(self, name: str, value: np.ndarray, kind: int | None = None) -> str:
        """An initialiser, once."""
        if name not in self.tensors:
            made = numpy_helper.from_array(np.asarray(value), name)
            if kind is not None:
                flat = np.ravel(value).tolist()
                made = helper.make_tensor(name, kind, np.shape(value), flat)
            self.tensors[name] = made
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def _model(self) -> onnx.ModelProto:
        float_model = self.net.model()
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            list(float_model.graph.input),
            list(float_model.graph.output),
            list(self.tensors.values()),
        )
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in self.domains)]
        made = helper.make_model(graph, opset_imports=imports, ir_version=10)
        made.producer_name = self.producer
        return made


def output_axis(node: onnx.NodeProto, weight: np.ndarray) -> int | None:
    """Axis of a weight's output channels; None for one scale."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1


def amax_scale(value: np.ndarray, axis: int | None, levels: int = 127) -> np.ndarray:
    """Symmetric scales of a weight, (C,) or ()."""
    if axis is None:
        return np.asarray(np.abs(value).max() / levels, np.float32)
    others = tuple(i for i in range(value.ndim) if i != axis)
    return np.asarray(np.abs(value).max(axis=others) / levels, np.float32)


def along(scale: np.ndarray, value: np.ndarray, axis: int | None) -> np.ndarray:
    """Scales that broadcast against their tensor."""
    if axis is None or scale.ndim == 0:
        return scale
    return scale.reshape([-1 if i == axis else 1 for i in range(value.ndim)])


def rounded(value: np.ndarray, scale: np.ndarray, axis: int | None, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint(value / along(scale, value, axis)), low, high)
