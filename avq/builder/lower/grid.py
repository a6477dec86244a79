"""Integer grids of a plan in a file: storage types, rounded constants, and checks that they can be written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from avq.builder.lower.model import FLOATS, Model
from avq.errors import PlanError, RequestError, nearest
from avq.toolbox.grids import spread_along
from avq.types import F32, AnyArray, Edge, QuantizationPlan, QuantPoint

Encoding = Literal["s8", "u8", "asymmetric"]
ENCODINGS: tuple[Encoding, ...] = ("s8", "u8", "asymmetric")

_ROUND: dict[str, Callable[[AnyArray], AnyArray]] = {
    "half_even": np.rint,
    "half_up": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
    "toward_zero": np.trunc,
}


@dataclass(frozen=True, slots=True)
class Grid:
    """Storage of a point's integers.

    Attributes:
        dtype: "int8", "uint8", "int16", "uint16", "int4" or "uint4".
        offset: added to every planned integer and zero point; moves a signed grid into unsigned storage.
    """

    dtype: str
    offset: int


def check_encoding(plan: QuantizationPlan, encoding: str) -> Encoding:
    """Return ``encoding`` when it can express the plan.

    Raises:
        RequestError: there is no such encoding.
        PlanError: names the points it cannot express.
    """
    known = next((name for name in ENCODINGS if name == encoding), None)
    if known is None:
        raise RequestError(f"there is no encoding '{encoding}'", fix=nearest(encoding, ENCODINGS))
    if known == "asymmetric":
        return known
    asymmetric = sorted(str(p.edge) for p in plan.points if not p.symmetric or p.mode == "dynamic")
    if asymmetric:
        raise PlanError(
            f"{len(asymmetric)} points are not symmetric, encoding {encoding} cannot write them",
            seen=", ".join(asymmetric[:6]) + (" ..." if len(asymmetric) > 6 else ""),
            fix="plan static signed grids with zero point 0, or lower for a CPU target as 'asymmetric'",
        )
    return known


def activation_grid(point: QuantPoint, encoding: Encoding) -> Grid:
    """Return the storage of an activation: signed grids become unsigned with offset 128, except with encoding s8.

    Grids below 8 bits keep 8-bit storage; the writer clips in float before Q, so only their levels occur.
    """
    width = 8 if point.bits <= 8 else 16
    if encoding == "s8":
        return Grid(f"int{width}", 0)
    return Grid(f"uint{width}", 1 << (width - 1) if point.signed else 0)


def constant_grid(point: QuantPoint) -> Grid:
    """Return the storage of a constant: as planned; four-bit weight-only points are INT4, others use 8 or 16 bits.

    ``packed`` points come as 8 or 16 bits out of the unpacking.
    """
    width = 4 if point.native_int4 else 8 if point.bits <= 8 else 16
    return Grid(f"int{width}" if point.signed else f"uint{width}", 0)


def quantize_constant(array: AnyArray, point: QuantPoint) -> AnyArray:
    """Quantize a constant to the planned integers.

    Division in float32, as QuantizeLinear does it; then the point's rounding, zero point and clipping. One bit
    keeps the sign, +1 for zero.

    Args:
        array: floats of any shape.
        point: its grid.

    Returns:
        int32, in the array's shape.
    """
    scale = spread(point.scale, array.shape, point)
    if point.bits == 1:
        return np.where(array >= 0, 1, -1).astype(np.int32)
    zero_point = spread(point.zero_point, array.shape, point)
    steps = _ROUND[point.rounding](array.astype(np.float32) / scale) + zero_point
    integers: AnyArray = np.clip(steps, point.qmin, point.qmax).astype(np.int32)
    return integers


def spread(values: AnyArray, shape: tuple[int, ...], point: QuantPoint) -> AnyArray:
    """Repeat scales or zero points, so that they broadcast against an array of ``shape``.

    Raises:
        PlanError: their number or axis does not fit ``shape``.
    """
    if values.ndim == 0:
        return values
    axis = _axis(point, len(shape))
    if point.block_size:
        expected = tuple(-(-n // point.block_size) if i == axis else n for i, n in enumerate(shape))
        _check_shape(values, expected, point)
    else:
        _check_shape(values, (shape[axis],), point)
    return spread_along(values, shape, axis, point.block_size)


def real_range(point: QuantPoint) -> tuple[F32, F32]:
    """Return the (lowest, highest) real number of the grid, float32, in the shape of the scale."""
    low = (point.qmin - point.zero_point) * point.scale.astype(np.float64)
    high = (point.qmax - point.zero_point) * point.scale.astype(np.float64)
    return low.astype(np.float32), high.astype(np.float32)


def _axis(point: QuantPoint, rank: int) -> int:
    axis = 1 if point.axis is None else point.axis
    if not -rank <= axis < rank:
        raise PlanError(
            f"axis {axis} of {point.edge} is outside its tensor",
            seen=f"rank {rank}",
            fix="name the channel axis",
        )
    return axis % rank


def _check_shape(values: AnyArray, expected: tuple[int, ...], point: QuantPoint) -> None:
    if values.shape != expected:
        raise PlanError(
            f"{point.edge} has the wrong number of scales",
            seen=f"{values.shape}, expected {expected} along axis {point.axis}",
            fix="give one scale per channel or block of that axis",
        )


def check_plan(model: Model, plan: QuantizationPlan) -> None:
    """Check that the plan fits the model; every error names the edge.

    Raises:
        PlanError: unknown tensors or nodes, unequal ties, points that QuantizeLinear cannot express.
    """
    for point in plan.points:
        _check_edge(model, point.edge)
        if model.constant(point.edge.tensor) is None:
            _check_activation(model, point)
    for name in plan.precisions:
        if name not in model.nodes:
            raise PlanError(f"the plan names an unknown node '{name}'", fix=nearest(name, model.nodes))
    check_ties(plan)


def check_ties(plan: QuantizationPlan) -> None:
    """Check that tied edges share one scale and zero point.

    Raises:
        PlanError: they do not.
    """
    for tie in plan.ties:
        points = [plan.by_edge[edge] for edge in sorted(tie) if edge in plan.by_edge]
        grids = {(p.scale.tobytes(), p.zero_point.tobytes()) for p in points}
        if len(grids) > 1:
            seen = ", ".join(f"{p.edge} {np.ravel(p.scale)[0]:.6g}" for p in points[:4])
            raise PlanError("tied edges have different scales", seen=seen, fix="use merged_range for ties")


def _check_edge(model: Model, edge: Edge) -> None:
    known = model.producers.keys() | model.inputs | model.initializers.keys()
    if edge.tensor not in known:
        raise PlanError(f"the plan names an unknown tensor '{edge.tensor}'", fix=nearest(edge.tensor, known))
    kind = model.element_type(edge.tensor)
    if kind not in FLOATS:
        raise PlanError(
            f"'{edge.tensor}' is not a float tensor and cannot be quantized",
            seen=onnx.TensorProto.DataType.Name(kind),
            fix="quantize the tensor after the cast to float",
        )
    if edge.node:
        _check_reader(model, edge)


def _check_reader(model: Model, edge: Edge) -> None:
    node = model.nodes.get(edge.node)
    if node is None:
        raise PlanError(f"the plan names an unknown node '{edge.node}'", fix=nearest(edge.node, model.nodes))
    inputs = list(node.input)
    if not 0 <= edge.input_index < len(inputs) or inputs[edge.input_index] != edge.tensor:
        raise PlanError(
            f"input {edge.input_index} of '{edge.node}' is not '{edge.tensor}'",
            seen=", ".join(inputs),
            fix="an edge names the tensor its node reads at that index",
        )


def _check_activation(model: Model, point: QuantPoint) -> None:
    if point.mode == "weight-only":
        _refuse(point, "mode weight-only", "weight-only points belong on constants")
    if point.bits == 1 or point.packed:
        _refuse(point, "packed or of one bit", "only constants are packed, and only they have two levels")
    if point.mode == "dynamic" and (clipped(point) or point.bits != 8 or point.scale.ndim):
        _refuse(
            point,
            "a dynamic point with its own grid",
            "DynamicQuantizeLinear has 8 bits and one scale per tensor",
        )
    if point.mode == "dynamic" and model.element_type(point.edge.tensor) != onnx.TensorProto.FLOAT:
        _refuse(point, "not float32", "DynamicQuantizeLinear reads float32 only")
    if point.rounding != "half_even":
        _refuse(point, f"rounding {point.rounding}", "QuantizeLinear rounds half to even and nothing else")
    if point.block_size:
        _refuse(point, f"blocks of {point.block_size}", "only constants can be quantized in blocks")
    if point.scale.ndim and clipped(point):
        _refuse(point, "a narrow or low-bit grid per channel", "give activations one scale per tensor")


def _refuse(point: QuantPoint, seen: str, fix: str) -> None:
    raise PlanError(f"the activation {point.edge} cannot be written", seen=seen, fix=fix)


def clipped(point: QuantPoint) -> bool:
    """Whether the grid is smaller than its storage type, so values must be clipped before Q."""
    return point.narrow or point.bits not in (8, 16)


def needed_opset(points: Iterable[QuantPoint], model_has_fp16: bool) -> int:
    """Return the oldest operator set that can express all ``points``."""
    opset = 19 if model_has_fp16 else 13
    for point in points:
        if point.block_size or point.bits > 8 or point.native_int4:
            opset = 21  # blocks, 16-bit and 4-bit integers
    return opset
