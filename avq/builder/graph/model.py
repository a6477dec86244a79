"""Read a user's ONNX file and normalise it to the float graph that plans refer to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
from onnx import external_data_helper, inliner

from avq.builder.graph.edit import name_nodes, prune, sort_nodes
from avq.builder.graph.fold import fold, fold_norms
from avq.builder.graph.inputs import drop_listed_initializers, fix_inputs, fp16_to_fp32
from avq.builder.graph.opset import raise_opset
from avq.builder.graph.size_limits import require_sizes
from avq.builder.graph.standard import (
    empty_default_domain,
    nodes_within,
    standardise,
    write_out_sparse,
)
from avq.builder.graph.view import tensor_view, view_of
from avq.errors import ModelError
from avq.process import STANDARD_ERROR, suppress_output
from avq.types import AnyArray, GraphView

__all__ = ["HALF_STEP", "FloatModel", "load_graph", "normalise", "quantized_ops", "read_model", "view_of"]

_LFS_POINTER = b"version https://git-lfs"
_OTHER_FILES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"PK\x03\x04", "a zip archive (PyTorch checkpoints are)"),
    (0, b"\x89HDF", "an HDF5 file (Keras models are)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"<?xml", "an XML file (OpenVINO models are)"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"{", "a JSON file"),
)


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file with its external data, unchanged.

    Raises:
        ModelError: missing, a folder, empty, truncated, not ONNX, or its external data is absent.
    """
    _check_file(path)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no typed home; OSError, ValueError
        raise ModelError(
            f"{path} is not a readable ONNX file",
            seen=f"{path.stat().st_size} bytes, {str(error) or type(error).__name__}",
            fix="download or export it again: it is truncated or of another format",
        ) from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph",
            seen=f"{path.stat().st_size} bytes, {len(model.graph.node)} nodes",
            fix="download or export it again: it is truncated or of another format",
        )
    require_sizes(model, path.name)
    _load_external(model, path)
    return model


def _check_file(path: Path) -> None:
    export = "give the path of an .onnx file"
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file", seen="a folder", fix=export)
    if not path.exists():
        raise ModelError(f"there is no file {path}", seen="nothing at that path", fix=export)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path} cannot be read", seen=str(error), fix="check its permissions") from None
    if not head:
        raise ModelError(f"{path} is empty", seen="0 bytes", fix="download or export it again")
    if head.startswith(_LFS_POINTER):
        raise ModelError(
            f"{path} is a git-lfs pointer, not the model", seen="a text file of git-lfs", fix="git lfs pull"
        )
    for offset, magic, kind in _OTHER_FILES:
        if head[offset:].startswith(magic):
            raise ModelError(f"{path} is not an ONNX file", seen=kind, fix="export the model to ONNX")


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # the library raises its own, OSError and ValueError alike
        raise ModelError(
            f"the weights of {path.name}, kept in a separate file, cannot be read",
            seen=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"put the external data file into {path.parent} next to the model",
        ) from None


_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
    | {"ConvInteger", "MatMulInteger", "Quant", "BipolarQuant", "Trunc", "FixedPoint", "FakeQuantize"}
)


#: Step of `normalise` after which the graph computes in float32.
HALF_STEP = "turning float16 into float32"
#: Steps of `normalise`: name, and the graph after it.
Trace = list[tuple[str, onnx.ModelProto]]


@dataclass(frozen=True)
class FloatModel:
    """A normalised float network.

    Attributes:
        view: graph that plans are made from, and bound to by its digest.
        proto: the same graph for the writers; never changed in place.
        messages: changes made by normalising, for the report.
        bound: values of inputs of the file that are constants in this graph, or that nothing reads.
        offset: the picture input of the file takes pixel values minus this; not 0 for int8 alone.
    """

    view: GraphView
    proto: onnx.ModelProto
    messages: tuple[str, ...] = ()
    bound: Mapping[str, AnyArray] = field(default_factory=dict)
    offset: int = 0


def load_graph(path: Path | str, *, input_size_px: tuple[int, int] | None = None) -> FloatModel:
    """Read and normalise a float ONNX model.

    Args:
        path: the file; external data in the same folder is read too.
        input_size_px: (width, height), for models that take pictures of any size.

    Raises:
        ModelError: not a readable ONNX file, already quantized, not one picture input, or of unknown size.
    """
    path = Path(path)
    return normalise(read_model(path), where=path.name, input_size_px=input_size_px)


def quantized_ops(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operators that only quantized models have, sorted; empty for a float model."""
    ops = {node.op_type for node in nodes_within(model)}
    return tuple(sorted(op for op in ops if op in _QUANTIZED or op.startswith("QLinear")))


def normalise(
    model: onnx.ModelProto,
    *,
    where: str = "model",
    input_size_px: tuple[int, int] | None = None,
    marked: bool = False,
    converter: bool = True,
    trace: Trace | None = None,
) -> FloatModel:
    """Normalise a parsed model, which is not changed.

    The result has one picture input of static shape, opset >= 17, folded constants and shapes, batch
    normalisation in its convolution, unique node names, topological order and inferred shapes.

    Args:
        model: the parsed model.
        where: name of the model in errors.
        input_size_px: (width, height), for models that take pictures of any size.
        marked: an import left its markers in place of quantizers, so these are not refused.
        converter: False raises old operator sets with avq's adapters alone.
        trace: receives the name of each step and the graph after it.

    Raises:
        ModelError: already quantized, not one picture input, of unknown size, damaged or not valid.
    """
    try:
        return _checked(model, input_size_px, marked=marked, converter=converter, trace=trace)
    except ModelError as error:
        raise ModelError(f"{where}: {error.what}", seen=error.seen, fix=error.fix) from None
    except Exception as error:  # a damaged file can break any assumption; users get an error, not a traceback
        seen = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        fix = "download or export it again; avq needs a valid ONNX graph"
        raise ModelError(f"{where}: the graph is damaged or not valid", seen=seen, fix=fix) from error


def _checked(
    model: onnx.ModelProto,
    input_size_px: tuple[int, int] | None,
    *,
    marked: bool,
    converter: bool,
    trace: Trace | None,
) -> FloatModel:
    ops = () if marked else quantized_ops(model)
    if ops:
        raise ModelError(
            "the model is quantized already",
            seen=", ".join(ops),
            fix="take over its scales with --strategy qat, or give the float model",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _normalised(copy, input_size_px, converter=converter, trace=trace)


def _normalised(
    model: onnx.ModelProto, input_size_px: tuple[int, int] | None, *, converter: bool, trace: Trace | None
) -> FloatModel:
    def note(step: str) -> None:
        if trace is not None:
            snapshot = onnx.ModelProto()
            snapshot.CopyFrom(model)
            trace.append((step, snapshot))

    empty_default_domain(model)
    if model.functions:
        model = inline_functions(model)
        note("inlining functions")
    drop_listed_initializers(model.graph)
    if write_out_sparse(model):
        note("writing out sparse weights")
    model.ir_version = max(model.ir_version, 8)
    name_nodes(model.graph)
    sort_nodes(model.graph)
    messages = fp16_to_fp32(model)
    note(HALF_STEP)
    model, raised = raise_opset(model, converter=converter)
    note("raising the operator set")
    rewritten = standardise(model)
    note("rewriting fused operators")
    fixed = fix_inputs(model, input_size_px)
    messages += [*raised, *rewritten, *fixed.messages]
    note("fixing the input")
    declared = {o.name: tensor_view(o).shape for o in model.graph.output}
    model = fold(model)
    note("folding constants")
    folded = fold_norms(model.graph)
    if folded:
        messages.append(f"{folded} normalisation nodes folded into convolutions")
        note("folding normalisation")
        model = fold(model)
    return replace(_finished(model, messages, declared), bound=fixed.bound, offset=fixed.offset)


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline local functions; write the defaults of their attributes at each call first.

    ``onnx.inliner`` drops a missing attribute, so the operator's own default would replace the function's.

    Returns:
        A new model; ``model`` stays as it is.
    """
    original, model = model, onnx.ModelProto()
    model.CopyFrom(original)
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for node in nodes_within(model):
        function = functions.get((node.domain, node.op_type, node.overload))
        given = {item.name for item in node.attribute}
        if function is not None:
            node.attribute.extend(d for d in function.attribute_proto if d.name not in given)
    return inliner.inline_local_functions(model)


def _finished(
    model: onnx.ModelProto, messages: list[str], declared: dict[str, tuple[int, ...]]
) -> FloatModel:
    prune(model.graph)
    name_nodes(model.graph)
    sort_nodes(model.graph)
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            _declare(output, declared[output.name])
    try:
        with suppress_output(STANDARD_ERROR):
            onnx.checker.check_model(model)
    except Exception as error:  # the checker raises ValidationError, and RuntimeError on its own limits
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("not a valid ONNX graph", seen=first, fix="export the model again") from None
    return FloatModel(view_of(model), model, tuple(messages))


def _declare(output: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    """Keep the exporter's shape where inference has none (operators of other domains)."""
    for size in shape:
        dim = output.type.tensor_type.shape.dim.add()
        if size >= 0:
            dim.dim_value = size
