"""From a quantized ONNX file to its float graph and the quantization it carried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from avq.builder.graph.view import view_of
from avq.builder.lift.dialect import dialect_of
from avq.builder.lift.fakequant import read_fake_quantize
from avq.builder.lift.grid import Grid
from avq.builder.lift.linear import read_linear
from avq.builder.lift.marks import place_marks, unmark
from avq.builder.lift.pitfalls import look_around
from avq.builder.lift.qonnx import read_qonnx
from avq.builder.lift.reading import Reading
from avq.builder.lift.refuse import is_foreign, refuse_unreadable
from avq.builder.lift.table import finding
from avq.types import Finding, Foreign


@dataclass(frozen=True)
class Marked:
    """A quantized file with one neutral mark per quantizer, ready to be normalised.

    Attributes:
        proto: the marked graph: float but for the marks.
        marks: mark -> grid; None where a fault leaves the tensor float.
        dialect, producer: whose file it is.
        faults: code -> places, met while reading.
    """

    proto: onnx.ModelProto
    marks: Mapping[str, Grid | None]
    dialect: str
    producer: str
    faults: Mapping[str, list[str]]

    def unmark(self, normal: onnx.ModelProto) -> tuple[onnx.ModelProto, Foreign]:
        """The float graph behind the marked (normalised) one, and what the marks stood for."""
        bare = unmark(normal, self.marks)
        places = {code: list(seen) for code, seen in self.faults.items()}
        for code, place in bare.faults:
            places.setdefault(code, []).append(place)
        found = [finding(code, seen) for code, seen in places.items()]
        found += look_around(view_of(bare.proto), bare.points, bare.biases)
        foreign = Foreign(self.dialect, self.producer, bare.points, {}, _in_order(found))
        return bare.proto, foreign


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the file carries any quantization, readable or not."""
    return any(is_foreign(node) for node in model.graph.node)


def mark(model: onnx.ModelProto) -> Marked:
    """Read a quantized file of any dialect; ``model`` is left as it is.

    Raises ModelError, its text beginning with AVQ-Qnn, when no float graph can be made of it.
    """
    reading = Reading.of(model)
    refuse_unreadable(reading)
    if reading.opset > 21:
        reading.fault("AVQ-Q20", f"opset {reading.opset}")
    found = [*read_linear(reading), *read_qonnx(reading), *read_fake_quantize(reading)]
    marks = place_marks(reading, found)
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return Marked(reading.proto, marks, dialect_of(model), producer, reading.faults)


def lift(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Foreign]:
    """The float graph as it stands in the file, and its quantization; nothing else is changed.

    A build normalises between the two halves, so that its points lie on the graph it plans on. A float file
    comes back with no points. Raises ModelError as ``mark`` does.
    """
    marked = mark(model)
    return marked.unmark(marked.proto)


def _in_order(found: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(found, key=lambda f: f.code))
