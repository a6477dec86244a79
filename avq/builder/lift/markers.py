"""Markers: one neutral Q/DQ pair per quantizer of any dialect, so that normalising keeps its place.

Normalising renames, folds and fuses; only an operator between two others survives it. A
marker is a QuantizeLinear and a DequantizeLinear, which every operator set since 10 knows, with a scale whose name
leads back to the grid. ``remove_markers`` takes the markers out of the normal graph and says where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import fresh_name, name_nodes, prune, reads, replace_nodes, sort_nodes
from avq.builder.lift.grid import Grid, fits
from avq.builder.lift.reading import FoundQuantizer, QuantizedFile
from avq.types import Edge, QuantPoint

_KEY = "avq-lift-{}"
BIAS_BITS = 32


def insert_markers(reading: QuantizedFile, found: Sequence[FoundQuantizer]) -> dict[str, Grid | None]:
    """Replace every quantizer in the copy by its mark; mark -> grid (None: the tensor stays float)."""
    graph, markers = reading.proto.graph, {}
    out = {id(node) for one in found for node in one.nodes}
    replace_nodes(graph, [node for node in graph.node if id(node) not in out])
    for index, one in enumerate(found):
        key = _KEY.format(index)
        markers[key] = one.grid
        graph.node.extend(_pair(one, key, index))
        graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), key))
        graph.initializer.append(numpy_helper.from_array(np.zeros((), np.uint8), f"{key}-zero"))
    name_nodes(graph)
    sort_nodes(graph)
    prune(graph)
    _forget_domains(reading.proto)
    return markers


def _pair(one: FoundQuantizer, key: str, index: int) -> list[onnx.NodeProto]:
    between, given = f"{one.result}/mark{index}", [key, f"{key}-zero"]
    return [
        helper.make_node("QuantizeLinear", [one.source, *given], [between], name=f"{key}-in"),
        helper.make_node("DequantizeLinear", [between, *given], [one.result], name=f"{key}-out"),
    ]


def _forget_domains(proto: onnx.ModelProto) -> None:
    """Operator sets of other tools that no node needs any more."""
    needed = (
        {node.domain for node in proto.graph.node} | {f.domain for f in proto.functions} | {"", "ai.onnx"}
    )
    kept = [entry for entry in proto.opset_import if entry.domain in needed]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


@dataclass(frozen=True)
class UnmarkedGraph:
    """A float graph and what stood in it.

    Attributes:
        biases: constants that were stored in 32 bits, with that grid; they are float constants now.
        faults: (code, place) of grids that do not fit their tensor; those tensors stay float.
    """

    proto: onnx.ModelProto
    points: tuple[QuantPoint, ...]
    biases: Mapping[str, Grid]
    faults: tuple[tuple[str, str], ...]


def remove_markers(proto: onnx.ModelProto, markers: Mapping[str, Grid | None]) -> UnmarkedGraph:
    """Take the markers out of a (normalised) graph; ``proto`` is left as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return _MarkerRemoval(copy, markers).run()


@dataclass
class _Marker:
    source: str
    result: str
    grid: Grid | None


class _MarkerRemoval:
    def __init__(self, proto: onnx.ModelProto, markers: Mapping[str, Grid | None]) -> None:
        self.proto, self.graph = proto, proto.graph
        self.faults: list[tuple[str, str]] = []
        self.biases: dict[str, Grid] = {}
        self.shapes = _shapes(proto.graph)
        self.constants = {tensor.name for tensor in self.graph.initializer}
        self.markers = self._take_out(markers)

    def _take_out(self, markers: Mapping[str, Grid | None]) -> dict[str, _Marker]:
        """result -> mark, in topological order."""
        quantizers = {
            n.output[0]: n for n in self.graph.node if n.op_type == "QuantizeLinear" and n.input[1] in markers
        }
        taken: dict[str, _Marker] = {}
        kept = []
        for node in self.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[1] in markers:
                source, grid = quantizers[node.input[0]].input[0], markers[node.input[1]]
                taken[node.output[0]] = _Marker(source, node.output[0], self._fitting(source, grid))
            elif node.output[0] not in quantizers:
                kept.append(node)
        replace_nodes(self.graph, kept)
        return taken

    def _fitting(self, source: str, grid: Grid | None) -> Grid | None:
        """The grid, unless it cannot lie on its tensor."""
        if grid is None:
            return None
        if not fits(grid, self.shapes.get(source)):
            self.faults.append(("AVQ-Q07", f"{source} ({grid.scale.shape} along axis {grid.axis})"))
            return None
        if (
            source not in self.constants
            and grid.scale.ndim
            and (grid.narrow or grid.bits not in (8, 16) or grid.block_size)
        ):
            self.faults.append(("AVQ-Q32", source))
            return None
        return grid

    def run(self) -> UnmarkedGraph:
        self._part_chains()
        for output in self.graph.output:
            if output.name in self.markers:
                self._free_output(output.name)
        points = self._rewire()
        self._tidy()
        return UnmarkedGraph(self.proto, points, self.biases, tuple(self.faults))

    def _part_chains(self) -> None:
        """A mark behind a mark: the same grid twice is once; another one reads through an Identity."""
        for mark in self.markers.values():
            before = self.markers.get(mark.source)
            if before is None:
                continue
            same = before.grid is not None and mark.grid is not None and before.grid.key == mark.grid.key
            if before.grid is None or same:
                mark.source = before.source
                continue
            if mark.grid is not None:
                self.faults.append(("AVQ-Q40", before.source))
            mark.source = self._identity(mark.source, fresh_name(self.graph, f"{mark.source}/again"))

    def _identity(self, source: str, output: str) -> str:
        self.graph.node.append(helper.make_node("Identity", [source], [output], name=output))
        return output

    def _free_output(self, name: str) -> None:
        """The graph output keeps its name: its float producer takes it over, or an Identity carries it."""
        mark = self.markers[name]
        writer = next((n for n in self.graph.node if mark.source in n.output), None)
        if writer is not None and self._alone(mark):
            writer.output[list(writer.output).index(mark.source)] = name
            old = mark.source
            for other in self.markers.values():
                other.source = name if other.source == old else other.source
            return
        hidden = fresh_name(self.graph, f"{name}/quantized")
        for node in self.graph.node:
            for index, read in enumerate(node.input):
                node.input[index] = hidden if read == name else read
        for other in self.markers.values():
            other.source = hidden if other.source == name else other.source
        del self.markers[name]
        self.markers[hidden] = _Marker(mark.source, hidden, mark.grid)
        self._identity(hidden, name)

    def _alone(self, mark: _Marker) -> bool:
        """Everything that reads the float tensor reads it through this grid, and it is no graph output."""
        bare = any(mark.source in reads(n) for n in self.graph.node)
        if bare or mark.source in {o.name for o in self.graph.output}:
            return False
        key = mark.grid.key if mark.grid is not None else None
        grids = [m.grid for m in self.markers.values() if m.source == mark.source]
        return all((g.key if g is not None else None) == key for g in grids)

    def _rewire(self) -> tuple[QuantPoint, ...]:
        """Every reader of a mark reads its source; one point per tensor, or per edge where readers differ."""
        sources = {mark.source for mark in self.markers.values()}
        seen: dict[str, list[tuple[Edge, Grid | None]]] = {}
        name_nodes(self.graph)
        for node in self.graph.node:
            self._refuse_inner(node)
            for index, name in enumerate(node.input):
                mark = self.markers.get(name)
                if mark is not None and mark.result != mark.source:
                    node.input[index] = mark.source
                if mark is not None or name in sources:
                    edge = Edge(node.input[index], node.name, index)
                    seen.setdefault(edge.tensor, []).append((edge, mark.grid if mark is not None else None))
        outputs = {o.name for o in self.graph.output}
        points: list[QuantPoint] = []
        for tensor in sorted(sources):
            through = self.markers.get(tensor)
            kept = tensor in outputs and through is None
            grids = [g for _, g in seen.get(tensor, [])]
            if through is not None:
                grids.append(through.grid)
            points += self._points(tensor, seen.get(tensor, []), grids, kept_float=kept)
        return tuple(points)

    def _points(
        self,
        tensor: str,
        readers: Sequence[tuple[Edge, Grid | None]],
        grids: Sequence[Grid | None],
        *,
        kept_float: bool,
    ) -> list[QuantPoint]:
        known = [grid for grid in grids if grid is not None]
        keys = {grid.key for grid in known}
        if known and known[0].bits == BIAS_BITS:
            self.biases[tensor] = known[0]
            return []
        if not known:
            return []
        if len(keys) > 1:
            self.faults.append(("AVQ-Q10", tensor))
        if len(keys) == 1 and len(known) == len(grids) and not kept_float:
            return [known[0].point(Edge(tensor))]
        return [grid.point(edge) for edge, grid in readers if grid is not None]

    def _refuse_inner(self, node: onnx.NodeProto) -> None:
        for name in (reads(node) - set(node.input)) & set(self.markers):
            self.faults.append(("AVQ-Q39", name))

    def _tidy(self) -> None:
        gone = {mark.result for mark in self.markers.values() if mark.result != mark.source}
        kept = [v for v in self.graph.value_info if v.name not in gone and "/mark" not in v.name]
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)
        name_nodes(self.graph)
        sort_nodes(self.graph)
        prune(self.graph)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.dim_value > 0 else -1 for d in kind.shape.dim)
    return shapes
