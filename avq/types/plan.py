"""The quantization plan: every decision of a strategy, as data.

Serialised as JSON plus arrays (plan.json + plan.npz in a bundle); diffable; bound to the digest of the
float graph it was made for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from avq.errors import PlanError
from avq.types.arrays import F32, I64, AnyArray, ArrayRecord
from avq.types.report import Finding

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
Mode = Literal["static", "dynamic", "weight-only"]
Rounding = Literal["half_even", "half_up", "floor", "ceil", "toward_zero"]


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """A tensor with all its consumers, or one consumer's view of it.

    Attributes:
        tensor: name in the float graph (activation or constant).
        node: name of one consumer; '' means every consumer.
        input_index: that consumer's input; -1 with ``node == ''``.
    """

    tensor: str
    node: str = ""
    input_index: int = -1

    def __str__(self) -> str:
        return f"{self.tensor}@{self.node}:{self.input_index}" if self.node else self.tensor


@dataclass(frozen=True, slots=True, eq=False)
class QuantPoint(ArrayRecord):
    """How one edge is quantized: x ~ scale * (q - zero_point).

    Attributes:
        edge: where.
        scale: () per tensor or (C,) per channel along ``axis``, float32, > 0; with ``block_size``, one per block in
            an array of the rank of the tensor. A read-only copy.
        zero_point: shape of ``scale``, int64; 0 for symmetric points. A read-only copy.
        axis: channel axis for per-channel points, else None.
        block_size: elements per scale along ``axis`` for block-wise weights, else None.
        bits: 1..16. One bit is the signed grid of two levels, -1 and +1: constants only.
        signed: the integer grid has negative levels.
        narrow: the grid lacks its lowest level.
        rounding: how x / scale becomes an integer.
        mode: static scales; dynamic (scale at run time, scale/zero_point unused); weight-only.
        packed: constants only: ``bits`` bits each in the file, unpacked when an engine loads it.

    Raises:
        PlanError: bits out of range, a scale that is not positive and finite, or arrays of different shapes.
    """

    edge: Edge
    scale: F32
    zero_point: I64
    axis: int | None = None
    block_size: int | None = None
    bits: int = 8
    signed: bool = True
    narrow: bool = False
    rounding: Rounding = "half_even"
    mode: Mode = "static"
    packed: bool = False

    def __post_init__(self) -> None:
        two_levels = self.signed and not np.any(self.zero_point)
        if not (1 <= self.bits <= 16 and (self.bits > 1 or two_levels)):
            raise PlanError(
                f"{self.edge} has no grid of {self.bits} bits",
                seen=f"signed {self.signed}, zero point {np.ravel(self.zero_point)[:4]}",
                fix="bits are 1 to 16; one bit means -1 and +1, signed and without a zero point",
            )
        if not (np.all(np.isfinite(self.scale)) and np.all(self.scale > 0)):
            raise PlanError(
                f"the scale of {self.edge} is not a positive finite number",
                seen=f"{np.ravel(self.scale)[:4]}",
                fix="clamp dead channels to a small positive scale",
            )
        if self.scale.shape != self.zero_point.shape:
            raise PlanError(
                f"scale and zero point of {self.edge} differ in shape",
                seen=f"{self.scale.shape} and {self.zero_point.shape}",
                fix="give one zero point per scale",
            )
        self._freeze("scale", "zero_point", copy=True)

    @property
    def qmin(self) -> int:
        """Lowest integer of the grid."""
        if self.bits == 1:
            return -1
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low + 1 if self.narrow else low

    @property
    def qmax(self) -> int:
        """Highest integer of the grid."""
        if self.bits == 1:
            return 1
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def symmetric(self) -> bool:
        """True when the grid is signed around zero: the only kind TensorRT takes."""
        return self.signed and not np.any(self.zero_point)

    @property
    def native_int4(self) -> bool:
        """True when the file holds the constant as ONNX's own 4-bit integers."""
        return self.bits == 4 and self.mode == "weight-only" and not self.packed

    def settings(self) -> dict[str, object]:
        """Return every field but the arrays as JSON values; ``packed`` only when True, as older plans lack it."""
        return {
            "tensor": self.edge.tensor,
            "node": self.edge.node,
            "input_index": self.edge.input_index,
            "axis": self.axis,
            "block_size": self.block_size,
            "bits": self.bits,
            "signed": self.signed,
            "narrow": self.narrow,
            "rounding": self.rounding,
            "mode": self.mode,
            **({"packed": True} if self.packed else {}),
        }


@dataclass(frozen=True, slots=True)
class NodePrecision:
    """A node's precision with its reason.

    Attributes:
        precision: number format that the node computes in.
        reason: one line for the report.
        float_side: number format of the bias and the results of an INT8 node; "fp16" only where the target needs it.
    """

    precision: Precision
    reason: str
    float_side: Literal["fp32", "fp16"] = "fp32"


@dataclass(frozen=True, eq=False)
class QuantizationPlan(ArrayRecord):
    """The whole decision for one float graph.

    Attributes:
        graph_digest: digest of the float GraphView the plan belongs to.
        points: one per quantized edge, activations and weights alike; no edge twice.
        ties: sets of edges that must share one scale (concat inputs and output).
        precisions: node name -> precision with reason; nodes not named are fp32.
        overrides: constant name -> read-only replacement array (corrected biases, rounded weights), of the shape and
            dtype of the float graph's constant.
        ranges: tensor -> (low, high) in real numbers for every tensor, for DLA builds; else empty.
        owner: name of the strategy.
        owner_version: its version.

    Raises:
        PlanError: two points are on one edge.
    """

    graph_digest: str
    points: tuple[QuantPoint, ...] = ()
    ties: tuple[frozenset[Edge], ...] = ()
    precisions: Mapping[str, NodePrecision] = field(default_factory=dict)
    overrides: Mapping[str, AnyArray] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    owner: str = ""
    owner_version: str = ""

    def __post_init__(self) -> None:
        edges = [point.edge for point in self.points]
        if len(set(edges)) != len(edges):
            twice = sorted({str(e) for e in edges if edges.count(e) > 1})
            raise PlanError(
                "two quantizers on one edge", seen=", ".join(twice[:4]), fix="name each edge once"
            )
        self._freeze("overrides")

    @cached_property
    def by_edge(self) -> dict[Edge, QuantPoint]:
        """The points by their edges."""
        return {point.edge: point for point in self.points}

    def point_for(self, tensor: str, node: str, input_index: int) -> QuantPoint | None:
        """Return the point that applies to one consumer: that of its own edge, else that of the tensor.

        Args:
            tensor: name in the float graph.
            node: name of the consumer.
            input_index: which of its inputs ``tensor`` is.

        Returns:
            The point; None when that input stays float.
        """
        own = self.by_edge.get(Edge(tensor, node, input_index))
        return own if own is not None else self.by_edge.get(Edge(tensor))

    def precision_of(self, node: str) -> NodePrecision:
        """Return the precision of a node; fp32 when the plan does not name it."""
        return self.precisions.get(node, NodePrecision("fp32", "not named in the plan"))

    @property
    def symmetric(self) -> bool:
        """True when every point can be written for TensorRT (signed, zero point 0)."""
        return all(point.symmetric for point in self.points)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that changes the lowered model, and the reasons."""
        sha = hashlib.sha256()
        for part in self._parts():
            sha.update(part)
            sha.update(b"\0")
        return sha.hexdigest()

    def _parts(self) -> Iterable[bytes]:
        yield f"{self.graph_digest} {self.owner} {self.owner_version}".encode()
        for point in sorted(self.points, key=lambda p: p.edge):
            yield repr(sorted(point.settings().items())).encode()
            yield np.ascontiguousarray(point.scale, np.float32).tobytes()
            yield np.ascontiguousarray(point.zero_point, np.int64).tobytes()
        for tie in sorted(sorted(str(e) for e in tie) for tie in self.ties):
            yield repr(tie).encode()
        for name in sorted(self.precisions):
            chosen = self.precisions[name]
            yield f"{name} {chosen.precision} {chosen.reason}".encode()
            if chosen.float_side != "fp32":
                yield f"{name} {chosen.float_side}".encode()
        for name in sorted(self.overrides):
            array = np.ascontiguousarray(self.overrides[name])
            yield f"{name} {array.dtype} {array.shape}".encode() + array.tobytes()
        for name in sorted(self.ranges):
            yield f"{name} {self.ranges[name]!r}".encode()


# Quantization read from the model file or from an encodings file.


@dataclass(frozen=True, eq=False)
class ImportedQuantization(ArrayRecord):
    """Quantization of another tool, as points on the float graph. A strategy imports it or refuses it.

    Attributes:
        dialect: file format, such as "onnxruntime-qdq", "qonnx" or "aimet-1.0.0".
        producer: producer named in the file; '' when it has none.
        points: on edges of the float graph, activations and weights alike; no edge twice.
        overrides: constant name -> read-only array that replaces the float graph's.
        findings: pitfalls, codes AVQ-Qnn; severity "error" cannot be expressed in a plan.
    """

    dialect: str
    producer: str = ""
    points: tuple[QuantPoint, ...] = ()
    overrides: Mapping[str, AnyArray] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def __post_init__(self) -> None:
        self._freeze("overrides")

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that prevent an import without changes."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


# Results of a strategy per group of operators, for the report.


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Decision and measurements for one fusion group, or for one layer. Unknown measurements are None.

    Attributes:
        name: name of its weighted operator.
        kind: "convolution", "depthwise", "matmul" and the like.
        precision: chosen number format.
        reason: one line for the report, with numbers where there are any.
        nodes: number of operators.
        sensitivity: ``PlanScore.badness`` of the network with this group alone in INT8.
        float_ns: measured nanoseconds of one inference with every group float.
        int8_ns: measured nanoseconds of one inference with every group in INT8.
        int8_gain: time that INT8 adds, as a share of the network's float time; negative is faster.
        boundary: time to convert its inputs as chosen, as a share of the network's float time.
    """

    name: str
    kind: str
    precision: Precision
    reason: str = ""
    nodes: int = 1
    sensitivity: float | None = None
    float_ns: int | None = None
    int8_ns: int | None = None
    int8_gain: float | None = None
    boundary: float | None = None

    def row(self) -> dict[str, object]:
        """Return a table row: times in microseconds, shares in percent, "-" for unknown."""
        return {
            "group": self.name,
            "kind": self.kind,
            "precision": self.precision,
            "nodes": self.nodes,
            "alone: badness": _rounded(self.sensitivity, 1.0, 5),
            "float us": _rounded(self.float_ns, 1e-3, 1),
            "INT8 us": _rounded(self.int8_ns, 1e-3, 1),
            "INT8 adds %": _rounded(self.int8_gain, 100.0, 2),
            "boundaries %": _rounded(self.boundary, 100.0, 2),
            "reason": self.reason,
        }


def _rounded(value: float | None, factor: float, digits: int) -> float | str:
    return "-" if value is None else round(value * factor, digits)
