"""Import a quantized ONNX file: its float graph and its quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from avq.builder.graph.edit import name_nodes
from avq.builder.graph.foreign import refuse_foreign
from avq.builder.graph.inputs import drop_listed_initializers, fix_inputs, fp16_to_fp32
from avq.builder.graph.model import FloatModel, inline_functions, normalise
from avq.builder.graph.view import view_of
from avq.builder.lift.clipping import restore_activations
from avq.builder.lift.findings import finding, refusal
from avq.builder.lift.grid import Grid
from avq.builder.lift.linear import DEQUANTIZE, QUANTIZE, read_linear
from avq.builder.lift.markers import insert_markers, remove_markers
from avq.builder.lift.pitfalls import graph_findings
from avq.builder.lift.qoperator import in_qdq_form
from avq.builder.lift.reading import QuantizedFile
from avq.builder.lift.single_node import is_fake_quantize, is_qonnx, read_fake_quantize, read_qonnx
from avq.errors import ModelError
from avq.types import Edge, Finding, ImportedQuantization, QuantPoint

# Dialect of a file: by its operators, then by its producer.

_PRODUCERS = (
    ("onnx.quantize", "onnxruntime-qdq"),
    ("brevitas", "brevitas-qcdq"),
    ("nncf", "nncf-qdq"),
    ("modelopt", "modelopt-qdq"),
    ("vai", "vitisai-qdq"),
    ("quark", "vitisai-qdq"),
)


def dialect_of(model: onnx.ModelProto) -> str:
    """Name of the file's dialect, for messages only."""
    nodes = model.graph.node
    if any(is_qonnx(n) for n in nodes):
        return "qonnx"
    if any(is_fake_quantize(n) for n in nodes):
        return "fakequantize"
    origin = (
        f"{model.producer_name} {model.doc_string} {' '.join(p.value for p in model.metadata_props)}".lower()
    )
    for word, name in _PRODUCERS:
        if word in origin:
            return name
    if any(n.domain == "trt" for n in nodes):
        return "tensorrt-qdq"
    if any(n.op_type.startswith(("Vitis", "Extended")) for n in nodes):
        return "vitisai-qdq"
    return _dialect_by_form(model)


def _dialect_by_form(model: onnx.ModelProto) -> str:
    """Dialect of Q/DQ files without a producer: by their weights, clips and scales."""
    graph = model.graph
    writers = {name: node for node in graph.node for name in node.output}
    stored = {
        t.name for t in graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    }
    pairs = [n for n in graph.node if n.op_type in DEQUANTIZE]
    if any(_op(writers, n.input[0]) == "Clip" for n in pairs):
        return "brevitas-qcdq"
    if any(n.input[0] in stored for n in pairs):
        return "onnxruntime-qdq"
    floats = {t.name for t in graph.initializer}
    if any(n.op_type in QUANTIZE and n.input[0] in floats for n in graph.node):
        return "vitisai-qdq" if _powers_of_two(graph) else "pytorch-qdq"
    return "qdq"


def _op(writers: dict[str, onnx.NodeProto], name: str) -> str:
    return writers[name].op_type if name in writers else ""


def _powers_of_two(graph: onnx.GraphProto) -> bool:
    arrays = {t.name: t for t in graph.initializer}
    for node in graph.node:
        for value in (a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"):
            arrays[node.output[0]] = value
    scales = {n.input[1] for n in graph.node if n.op_type in QUANTIZE and n.input[1] in arrays}
    values = [onnx.numpy_helper.to_array(arrays[s]) for s in scales]
    return bool(values) and all(np.all(np.frexp(v)[0] == 0.5) for v in values)


# Files whose quantization a plan cannot express.

_DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
)
_INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits"})
_FLOATS = frozenset(
    {"TRT_FP8QuantizeLinear", "TRT_FP8DequantizeLinear", "TRT_MXFP8DynamicQuantize", "TRT_FP4DynamicQuantize"}
    | {"BFPQuantizeDequantize", "MXQuantizeDequantize", "FloatQuant"}
)


def is_quantizer(node: onnx.NodeProto) -> bool:
    """Whether the node rounds a float tensor to a grid or back."""
    return node.op_type in QUANTIZE | DEQUANTIZE or is_qonnx(node) or is_fake_quantize(node)


def is_foreign(node: onnx.NodeProto) -> bool:
    """Whether the node shows that its file is quantized."""
    op = node.op_type
    return is_quantizer(node) or op in _DYNAMIC | _INTEGER | _FLOATS or op.startswith("QLinear")


def refuse_unreadable(reading: QuantizedFile) -> None:
    """ModelError with the pitfall's code for run-time scales, integer operators, FP8, and control flow."""
    checks: tuple[tuple[str, Callable[[str], bool]], ...] = (
        ("AVQ-Q33", _DYNAMIC.__contains__),
        ("AVQ-Q34", lambda op: op in _INTEGER or op.startswith("QLinear")),
        ("AVQ-Q35", _FLOATS.__contains__),
    )
    nodes = list(reading.nodes_within())
    for code, matches in checks:
        places = [f"{n.op_type} '{n.name}'" for n, _ in nodes if matches(n.op_type)]
        if places:
            raise refusal(code, places)
    inside = [f"{n.op_type} '{n.name}'" for n, within in nodes if within and is_quantizer(n)]
    if inside:
        raise refusal("AVQ-Q39", inside)


@dataclass(frozen=True)
class Marked:
    """A quantized file with one neutral mark per quantizer, ready to be normalised.

    Attributes:
        proto: the marked graph: float but for the markers.
        markers: mark -> grid; None where a fault leaves the tensor float.
        dialect, producer: whose file it is.
        faults: code -> places, met while reading.
    """

    proto: onnx.ModelProto
    markers: Mapping[str, Grid | None]
    dialect: str
    producer: str
    faults: Mapping[str, list[str]]

    def remove_markers(self, normal: onnx.ModelProto) -> tuple[onnx.ModelProto, ImportedQuantization]:
        """The float graph behind the marked (normalised) one, and what the markers stood for."""
        bare = remove_markers(normal, self.markers)
        places = {code: list(seen) for code, seen in self.faults.items()}
        for code, place in bare.faults:
            places.setdefault(code, []).append(place)
        found = [finding(code, seen) for code, seen in places.items()]
        found += graph_findings(view_of(bare.proto), bare.points, bare.biases)
        foreign = ImportedQuantization(self.dialect, self.producer, bare.points, {}, _in_order(found))
        return bare.proto, foreign


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the file carries any quantization, readable or not."""
    return any(is_foreign(node) for node in model.graph.node)


def mark(model: onnx.ModelProto) -> Marked:
    """Read a quantized file of any dialect; ``model`` is left as it is.

    Raises ModelError, its text beginning with AVQ-Qnn, when no float graph can be made of it.
    """
    reading = QuantizedFile.of(in_qdq_form(model))
    refuse_unreadable(reading)
    if reading.opset > 21:
        reading.fault("AVQ-Q20", f"opset {reading.opset}")
    found = [*read_linear(reading), *read_qonnx(reading), *read_fake_quantize(reading)]
    markers = insert_markers(reading, restore_activations(reading, found))
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Marked(reading.proto, markers, dialect_of(model), producer, reading.faults)


def lift(model: onnx.ModelProto) -> tuple[onnx.ModelProto, ImportedQuantization]:
    """The float graph as it stands in the file, and its quantization; nothing else is changed.

    A build normalises between the two halves, so that its points lie on the graph it plans on. A float file
    comes back with no points. Raises ModelError as ``mark`` does.
    """
    marked = mark(model)
    return marked.remove_markers(marked.proto)


def _in_order(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: f.code))


# Import for a build.


@dataclass(frozen=True)
class Imported:
    """An imported file.

    Attributes:
        model: its float network, normalised.
        foreign: its quantization, on edges of ``model``.
        source: the file with the input size of ``model``, to compare the import with.
    """

    model: FloatModel
    foreign: ImportedQuantization
    source: onnx.ModelProto


def mark_file(proto: onnx.ModelProto, *, where: str) -> Marked:
    """``mark``, with the file's name in front of its errors."""
    try:
        return mark(proto)
    except ModelError as error:
        raise ModelError(f"{where}: {error.what}", seen=error.seen, fix=error.fix) from None


def import_model(
    proto: onnx.ModelProto, *, where: str, input_size_px: tuple[int, int] | None = None
) -> Imported:
    """Read a quantized file of any dialect.

    Args:
        proto: the file, parsed; left as it is.
        where: its name, for messages.
        input_size_px: (width, height), for models that take pictures of any size.

    Raises:
        ModelError: no float graph can be made of it (the text names the pitfall), or it takes no picture.
    """
    marked = mark_file(proto, where=where)
    refuse_foreign(marked.proto, where=where)
    normal = normalise(marked.proto, where=where, input_size_px=input_size_px, marked=True)
    bare, foreign = marked.remove_markers(normal.proto)
    remark = f"{foreign.dialect}: {len(foreign.points)} quantizers imported" + (
        f", written by {foreign.producer}" if foreign.producer else ""
    )
    model = replace(normal, view=view_of(bare), proto=bare, messages=(*normal.messages, remark))
    return Imported(model, foreign, runnable(proto, input_size_px))


def on_folded_input(
    foreign: ImportedQuantization, source: FloatModel, folded: FloatModel
) -> ImportedQuantization:
    """The same points on the graph whose input has the preprocessing folded in."""
    picture = source.view.inputs[0].name
    added = len(folded.proto.graph.node) - len(source.proto.graph.node)
    if added == 0:
        return foreign
    values = folded.proto.graph.node[added - 1].output[0]
    return replace(foreign, points=tuple(_renamed(p, picture, values) for p in foreign.points))


def _renamed(point: QuantPoint, old: str, new: str) -> QuantPoint:
    edge = point.edge
    return replace(point, edge=Edge(new, edge.node, edge.input_index)) if edge.tensor == old else point


def runnable(proto: onnx.ModelProto, input_size_px: tuple[int, int] | None) -> onnx.ModelProto:
    """A copy of the file with one picture input of fixed size, to compare others with."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if copy.functions:
        copy = inline_functions(copy)
    drop_listed_initializers(copy.graph)
    copy.ir_version = max(copy.ir_version, 8)
    name_nodes(copy.graph)
    fp16_to_fp32(copy)
    fix_inputs(copy, input_size_px)
    return copy
