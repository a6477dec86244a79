"""Match the entries of a side file with the float graph: tensors by name, edges, and the shape of scales."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from avq.builder.encodings.aimet_entry import Encoding, EncodingMismatchError
from avq.builder.lift.findings import finding
from avq.toolbox import Placement, place, residual_identity_edges
from avq.types import F32, I64, AnyArray, Edge, Finding, GraphView


@dataclass(frozen=True)
class TensorNames:
    """Looks up tensor names of the exported model in its normalised float graph."""

    graph: GraphView

    def find(self, name: str) -> str | None:
        """Tensor of the graph for ``name``; None when there is none.

        The name of the picture gives the float tensor after the preprocessing that a build folds into the graph.
        """
        if any(name == picture.name for picture in self.graph.inputs):
            return self._behind_preprocessing(name)
        known = self.graph.is_constant(name) or self.graph.producer(name) is not None
        return name if known else None

    def _behind_preprocessing(self, name: str) -> str:
        picture = self.graph.tensors.get(name)
        if picture is None or picture.dtype != "uint8":
            return name
        (cast, _), *others = self.graph.consumers(name)
        if others or cast.op != "Cast" or not cast.outputs[0].startswith(f"{name}_cast"):
            return name  # the exported model has uint8 input
        tensor = cast.outputs[0]
        for op in ("Mul", "Add"):
            readers = self.graph.consumers(tensor)
            if (
                len(readers) == 1
                and readers[0][0].op == op
                and f"{name}_{op.lower()}_by" in readers[0][0].inputs
            ):
                tensor = readers[0][0].outputs[0]
        return tensor

    @cached_property
    def placements(self) -> tuple[Placement, ...]:
        """Weighted operators that can run in integers."""
        return place(self.graph)

    @cached_property
    def weight_axes(self) -> Mapping[str, int | None]:
        """Weight -> its output-channel axis."""
        return {p.weight.tensor: p.weight_axis for p in self.placements if p.weight is not None}

    def whole(self, tensor: str) -> Edge:
        """Edge for all readers; a constant with one reader gets that reader's edge, as in plans."""
        readers = self.graph.consumers(tensor)
        if self.graph.is_constant(tensor) and len(readers) == 1:
            return Edge(tensor, readers[0][0].name, readers[0][1])
        return Edge(tensor)

    def integer_edges(self, tensors: Collection[str]) -> list[Edge]:
        """Edges into weighted operators and residual additions whose tensors are all in ``tensors``."""
        chosen = [p for p in self.placements if all(edge.tensor in tensors for edge in p.activations)]
        edges = [*(e for p in chosen for e in p.activations), *residual_identity_edges(self.graph, chosen)]
        return [edge for edge in dict.fromkeys(edges) if edge.tensor in tensors]


class Importer:
    """Matches one side file with one graph and collects what does not fit.

    Attributes:
        graph: the float graph.
        names: looks up its tensors by the names of the exported model.
        matched: number of entries with a tensor.
    """

    def __init__(self, graph: GraphView, where: str) -> None:
        self.graph, self.names, self.matched = graph, TensorNames(graph), 0
        self._where = where
        self._places: dict[str, list[str]] = defaultdict(list)
        self._unknown: list[str] = []

    def find(self, name: str, line: int) -> str | None:
        """Tensor for ``name``; None, with a note, when the graph has none."""
        tensor = self.names.find(name)
        if tensor is None:
            self._unknown.append(name)
            self.note("AVQ-Q50", name, line)
        else:
            self.matched += 1
        return tensor

    def note(self, code: str, name: str, line: int, seen: str = "") -> None:
        """Collect pitfall ``code`` of one entry."""
        place = f"{name} ({self._where}:{line})" if line else name
        self._places[code].append(f"{place} {seen}".rstrip())

    def mismatch(self, reason: EncodingMismatchError, name: str, line: int) -> None:
        """Collect the pitfall of an entry that becomes no point."""
        self.note(reason.code, name, line, reason.seen)

    def findings(self) -> tuple[Finding, ...]:
        """Findings by code; unknown names are an error when no entry has a tensor."""
        findings = []
        for code, places in sorted(self._places.items()):
            if code == "AVQ-Q50":
                severity = "warning" if self.matched else "error"
                findings.append(finding(code, places, severity=severity, fix=self._nearest))
            else:
                findings.append(finding(code, places))
        return tuple(findings)

    @cached_property
    def _nearest(self) -> str | None:
        known = [*self.graph.tensors, *self.graph.constants]
        close = difflib.get_close_matches(self._unknown[0], known, n=1, cutoff=0.6)
        hint = f"; the model has '{close[0]}'" if close else ""
        return f"use the file that was written for this model, or rename its entries{hint}"


# Scales of an entry in the shape that the plan needs for their tensor.

Shaped = tuple[F32, I64, "int | None"]


def shaped_for(entry: Encoding, tensor: str, names: TensorNames) -> Shaped:
    """Scales and offsets in the plan's shape for ``tensor``.

    Returns:
        (scale float32, offset int64, axis), see `QuantPoint`; the operator gives the axis where the file has none.

    Raises:
        EncodingMismatchError: AVQ-Q56, there are not as many as channels or blocks.
    """
    if entry.layout == "tensor":
        return np.asarray(entry.scale[0], np.float32), np.asarray(entry.offset[0], np.int64), None
    shape = names.graph.shape(tensor)
    if shape is None:
        raise EncodingMismatchError("AVQ-Q56", f"{len(entry.scale)} scales, unknown shape")
    if entry.layout == "channel":
        return _per_channel(entry, shape, _axis(entry.axis, names.weight_axes.get(tensor), shape))
    return _per_block(entry, shape, names.weight_axes.get(tensor))


def _axis(explicit: int | None, implied: int | None, shape: tuple[int, ...]) -> int:
    axis = implied if explicit is None else explicit
    if axis is None:
        raise EncodingMismatchError("AVQ-Q56", "no operator implies the channel axis")
    if not -len(shape) <= axis < len(shape):
        raise EncodingMismatchError("AVQ-Q56", f"axis {axis} of shape {shape}")
    return axis % len(shape)


def _per_channel(entry: Encoding, shape: tuple[int, ...], axis: int) -> Shaped:
    if len(entry.scale) != shape[axis]:
        raise EncodingMismatchError(
            "AVQ-Q56", f"{len(entry.scale)} scales for {shape[axis]} channels along axis {axis}"
        )
    return np.asarray(entry.scale, np.float32), np.asarray(entry.offset, np.int64), axis


def _per_block(entry: Encoding, shape: tuple[int, ...], channels: int | None) -> Shaped:
    """Shape scales per block: 2.x nests them in the tensor's rank, 1.x lists them by output channel."""
    assert entry.block_size is not None
    if entry.axis is not None:
        axis = _axis(entry.axis, None, shape)
        nested = entry.shape
    else:
        axis = 1 - _axis(None, channels, shape[:2])
        nested = (shape[1 - axis], -(-shape[axis] // entry.block_size))
    wanted = tuple(-(-n // entry.block_size) if i == axis else n for i, n in enumerate(shape))
    if int(np.prod(nested)) != len(entry.scale):
        raise EncodingMismatchError("AVQ-Q56", f"{len(entry.scale)} scales for blocks {wanted}")
    scale, offset = (
        _nested(np.asarray(values), nested, wanted, turned=entry.axis is None and axis == 0)
        for values in (entry.scale, entry.offset)
    )
    return scale.astype(np.float32), offset.astype(np.int64), axis


def _nested(values: AnyArray, nested: tuple[int, ...], wanted: tuple[int, ...], *, turned: bool) -> AnyArray:
    array = values.reshape(nested)
    array = array.T if turned else array
    array = array.reshape(*array.shape, *[1] * (len(wanted) - array.ndim))
    if array.ndim != len(wanted) or any(n not in (1, w) for n, w in zip(array.shape, wanted, strict=True)):
        raise EncodingMismatchError("AVQ-Q56", f"scales of shape {array.shape} for blocks {wanted}")
    full: AnyArray = np.broadcast_to(array, wanted).copy()
    return full
