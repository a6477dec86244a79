"""Write a plan as a side file, for tools that read scales but no Q/DQ graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import onnx

from avq.builder.encodings.aimet import WRITTEN_VERSIONS, write_aimet
from avq.builder.encodings.aimet_entry import AimetFile, Role, encoding
from avq.builder.encodings.match import TensorNames
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, write_cache
from avq.builder.graph.view import view_of
from avq.builder.lower.model import FP16_SUFFIX
from avq.errors import PlanError, RequestError, nearest
from avq.types import Edge, GraphView, QuantizationPlan, QuantPoint

CACHE_VERSION = "8501"
_SHOWN = 6
_REPLAN = "build with --option activations=symmetric or for --target tensorrt"


@dataclass(frozen=True)
class Lowered:
    """The plan's tensors in the written model.

    Attributes:
        weights: constants.
        partly: activations that some operator reads in float.
        picture: (name in the plan, name in the float model) of the tensor after the preprocessing; None when the
            preprocessing is not in the graph.
    """

    weights: Collection[str] = ()
    partly: Collection[str] = ()
    picture: tuple[str, str] | None = None

    def name(self, tensor: str) -> str:
        """Name of a planned tensor in the float model."""
        return self.picture[1] if self.picture and tensor == self.picture[0] else tensor


@dataclass(frozen=True)
class Written:
    """A side file.

    Attributes:
        data: its bytes.
        entries: number of grids in it.
        omitted: reason -> tensors that the format cannot express.
    """

    data: bytes
    entries: int
    omitted: Mapping[str, Sequence[str]] = field(default_factory=dict)


def plan_as_cache(plan: QuantizationPlan, lowered: Lowered, header: str) -> Written:
    """Write the plan's activations as a TensorRT calibration cache.

    Raises:
        PlanError: a grid is not signed, 8-bit, around zero and per tensor; names the points.
    """
    points = _one_per_tensor(plan)
    activations = [p for p in points if p.edge.tensor not in lowered.weights]
    _refuse(
        [p for p in points if p.mode != "static"], "a calibration cache: it has static scales only", _REPLAN
    )
    asymmetric = [p for p in activations if not p.symmetric or p.narrow or p.bits != 8 or p.scale.ndim]
    _refuse(asymmetric, "a calibration cache: INT8 around zero with one scale per tensor only", _REPLAN)
    entries = [CacheEntry.of(lowered.name(p.edge.tensor), float(p.scale)) for p in activations]
    weights = [p.edge.tensor for p in points if p.edge.tensor in lowered.weights]
    omitted = {"a cache has no weights: TensorRT scales them by their largest magnitude": weights}
    return Written(
        write_cache(TrtCache(header, tuple(entries))),
        len(entries),
        _with_changed_constants(omitted, plan, frozenset(lowered.weights)),
    )


def cache_header(version: str | None) -> str:
    """Header of a cache for a TensorRT version: "8501" is 8.5.1, "100300" is 10.3.0.

    Raises:
        RequestError: the version is no number.
    """
    number = version or CACHE_VERSION
    if not number.isdigit():
        raise RequestError(
            f"--version {number} is not a version of a calibration cache",
            fix="give digits only, such as 8501 for TensorRT 8.5.1",
        )
    return f"TRT-{number}-EntropyCalibration2"


def plan_as_aimet(plan: QuantizationPlan, lowered: Lowered, version: str) -> Written:
    """Write the plan as AIMET encodings.

    Raises:
        RequestError: unknown version.
        PlanError: the version cannot express a point; names the points.
    """
    if version not in WRITTEN_VERSIONS:
        raise RequestError(
            f"AIMET encodings {version} cannot be written", fix=nearest(version, WRITTEN_VERSIONS)
        )
    points = _one_per_tensor(plan)
    what = f"AIMET encodings {version}"
    _refuse([p for p in points if p.mode == "dynamic"], f"{what}: they have static scales only", _REPLAN)
    _refuse([p for p in points if p.rounding != "half_even"], f"{what}: they round half to even", _REPLAN)
    narrow = [p for p in points if p.narrow and (version.startswith("2.") or not p.symmetric)]
    _refuse(narrow, f"{what}: they leave a level unused", "--version 1.0.0 has symmetric narrow grids")
    blocks = [p for p in points if p.block_size is not None and not version.startswith("2.")]
    _refuse(blocks, f"{what}: they have a scale per block", "--version 2.0.0 has blocks")
    entries = []
    for p in points:
        role: Role = "param" if p.edge.tensor in lowered.weights else "activation"
        entry = encoding(replace(p, edge=Edge(lowered.name(p.edge.tensor))), role)
        entries.append(entry if version.startswith("2.") else replace(entry, axis=None, shape=()))
    recoded = [p.edge.tensor for p in points if p.signed and not p.symmetric and not version.startswith("2.")]
    partly = [p.edge.tensor for p in points if p.edge.tensor in lowered.partly]
    omitted = {
        "signed grids with a zero point are written unsigned, with the same numbers": recoded,
        "an operator reads the float tensor, but encodings apply to every reader": partly,
    }
    file = AimetFile(version, tuple(entries), {"producer": "avq"} if version.startswith("2.") else {})
    return Written(
        write_aimet(file), len(entries), _with_changed_constants(omitted, plan, frozenset(lowered.weights))
    )


def _one_per_tensor(plan: QuantizationPlan) -> list[QuantPoint]:
    """The plan's points by tensor, sorted.

    Raises:
        PlanError: readers of one tensor have different grids.
    """
    points: dict[str, QuantPoint] = {}
    unequal = []
    for p in sorted(plan.points, key=lambda p: p.edge):
        first = points.setdefault(p.edge.tensor, p)
        if not _same_grid(first, p):
            unequal.append(p)
    _refuse(
        unequal,
        "one grid per tensor: readers of a tensor have different grids",
        "build a bundle with one grid per tensor",
    )
    return list(points.values())


def _same_grid(a: QuantPoint, b: QuantPoint) -> bool:
    same_arrays = a.scale.tobytes() == b.scale.tobytes() and a.zero_point.tobytes() == b.zero_point.tobytes()
    return same_arrays and replace(a, edge=b.edge).settings() == b.settings()


def _refuse(points: Sequence[QuantPoint], what: str, fix: str) -> None:
    if points:
        names = ", ".join(str(p.edge) for p in points[:_SHOWN]) + (" ..." if len(points) > _SHOWN else "")
        raise PlanError(f"{len(points)} grids cannot be written as {what}", seen=names, fix=fix)


def _with_changed_constants(
    omitted: Mapping[str, Sequence[str]], plan: QuantizationPlan, weights: Set[str]
) -> dict[str, list[str]]:
    replaced = set(plan.overrides)
    kept = {
        "weights were equalized or rounded in the bundle's model only: to use the scales with the float model, "
        "build with --option equalize=off --option rounding=nearest": sorted(replaced & weights),
        "corrected biases stay in the bundle's model": sorted(replaced - weights),
    }
    return {reason: list(names) for reason, names in {**omitted, **kept}.items() if names}


# Inspection of the lowered model.

_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")


def inspect_lowered(model: bytes, plan: QuantizationPlan) -> Lowered:
    """Find the tensors of ``plan`` in ``model``, the ONNX file that a build wrote with it."""
    graph = view_of(_by_float_names(onnx.load_from_string(model)))
    tensors = {point.edge.tensor for point in plan.points}
    written = {name for node in graph.nodes for name in node.outputs} | {t.name for t in graph.inputs}
    picture = graph.inputs[0].name
    behind = TensorNames(graph).find(picture) or picture
    return Lowered(
        weights=frozenset(tensors - written),
        partly=frozenset(t for t in tensors & written if _read_in_float(graph, t)),
        picture=None if behind == picture else (behind, picture),
    )


def _by_float_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with FP16 tensors under their names in the plan, and without the casts between the two."""
    graph, kept, known = model.graph, [], set()
    for node in graph.node:
        node.input[:] = [name.removesuffix(FP16_SUFFIX) for name in node.input]
        node.output[:] = [name.removesuffix(FP16_SUFFIX) for name in node.output]
        if not (node.op_type == "Cast" and node.input == node.output):
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    constants = list(graph.initializer)
    del graph.initializer[:]
    for constant in constants:
        constant.name = constant.name.removesuffix(FP16_SUFFIX)
        if constant.name not in known:
            graph.initializer.append(constant)
        known.add(constant.name)
    return model


def _read_in_float(graph: GraphView, tensor: str) -> bool:
    """Whether some reader is neither a quantizer nor the Clip that the writer put before one."""
    return any(
        node.op not in _QUANTIZERS and not (node.op == "Clip" and node.name.startswith(f"{tensor}/Clip"))
        for node, _ in graph.consumers(tensor)
        if not _dequantized(graph, tensor)
    )


def _dequantized(graph: GraphView, tensor: str) -> bool:
    """Whether the tensor is a quantized graph output, whose name is that of the DequantizeLinear result."""
    producer = graph.producer(tensor)
    return producer is not None and producer.op == "DequantizeLinear"
