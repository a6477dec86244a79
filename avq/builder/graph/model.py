"""A user's ONNX file as the one normalised float graph that everything else is bound to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import inliner

from avq.builder.graph.edit import name_nodes, prune, sort_nodes
from avq.builder.graph.fold import fold
from avq.builder.graph.inputs import drop_listed_initializers, fix_inputs, half_to_float
from avq.builder.graph.norms import fold_norms
from avq.builder.graph.opset import raise_opset
from avq.builder.graph.read import read_model
from avq.builder.graph.view import tensor_view, view_of
from avq.errors import ModelError
from avq.process import STANDARD_ERROR, muted
from avq.types import GraphView

__all__ = ["FloatModel", "load_graph", "normalise", "quantized_ops", "read_model", "view_of"]

_QUANTIZED = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
    | {"ConvInteger", "MatMulInteger", "Quant", "BipolarQuant", "Trunc", "FixedPoint", "FakeQuantize"}
)


@dataclass(frozen=True)
class FloatModel:
    """A normalised float network.

    Attributes:
        view: what plans are made from; its digest binds them.
        proto: the same graph for the writers; never changed in place.
        messages: what normalising changed, for people.
    """

    view: GraphView
    proto: onnx.ModelProto
    messages: tuple[str, ...] = ()


def load_graph(path: Path | str, *, input_size_px: tuple[int, int] | None = None) -> FloatModel:
    """Read and normalise a float ONNX model.

    Args:
        path: the file; external data beside it is read too.
        input_size_px: (width, height), for models that take pictures of any size.

    Raises:
        ModelError: not a readable ONNX file, already quantized, not one picture input, or of unknown size.
    """
    path = Path(path)
    return normalise(read_model(path), where=path.name, input_size_px=input_size_px)


def quantized_ops(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators that show the model is quantized already, sorted; empty for a float model."""
    ops = {node.op_type for node in model.graph.node}
    return tuple(sorted(op for op in ops if op in _QUANTIZED or op.startswith("QLinear")))


def normalise(
    model: onnx.ModelProto,
    *,
    where: str = "model",
    input_size_px: tuple[int, int] | None = None,
    marked: bool = False,
) -> FloatModel:
    """The normalised form of a parsed model, which is left as it is.

    ``marked`` says that an import put its marks where quantizers stood; without it they are refused.

    One picture input of static shape, opset >= 17, constants and shapes folded, batch normalisation in its
    convolution, unique node names, topological order, shapes inferred.
    """
    try:
        return _checked(model, input_size_px, marked=marked)
    except ModelError as error:
        raise ModelError(f"{where}: {error.what}", seen=error.seen, fix=error.fix) from None
    except Exception as error:  # a damaged file can break any assumption; people get words, not a traceback
        seen = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        fix = "download or export it again; avq needs a valid ONNX graph"
        raise ModelError(f"{where}: the graph is damaged or not valid", seen=seen, fix=fix) from error


def _checked(model: onnx.ModelProto, input_size_px: tuple[int, int] | None, *, marked: bool) -> FloatModel:
    found = () if marked else quantized_ops(model)
    if found:
        raise ModelError(
            "the model is quantized already",
            seen=", ".join(found),
            fix="take over its scales with --strategy qat, or give the float model",
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _normalised(copy, input_size_px)


def _normalised(model: onnx.ModelProto, input_size_px: tuple[int, int] | None) -> FloatModel:
    if model.functions:
        model = inliner.inline_local_functions(model)
    drop_listed_initializers(model.graph)
    model.ir_version = max(model.ir_version, 8)
    name_nodes(model.graph)
    sort_nodes(model.graph)
    messages = half_to_float(model)
    model, raised = raise_opset(model)
    messages += raised + fix_inputs(model.graph, input_size_px)
    declared = {o.name: tensor_view(o).shape for o in model.graph.output}
    model = fold(model)
    folded = fold_norms(model.graph)
    if folded:
        messages.append(f"{folded} normalisation nodes folded into convolutions")
        model = fold(model)
    return _finished(model, messages, declared)


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
        with muted(STANDARD_ERROR):
            onnx.checker.check_model(model)
    except Exception as error:  # the checker raises ValidationError, and RuntimeError on its own limits
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError("not a valid ONNX graph", seen=first, fix="export the model again") from None
    return FloatModel(view_of(model), model, tuple(messages))


def _declare(output: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    """Keep the exporter's word where inference knows nothing (operators of other domains)."""
    for size in shape:
        dim = output.type.tensor_type.shape.dim.add()
        if size >= 0:
            dim.dim_value = size
