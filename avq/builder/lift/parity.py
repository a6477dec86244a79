"""Compare an import with its source: the file and the lowered plan, both unoptimised, on the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from avq.builder.graph.edit import fresh_name, int_attribute, replace_nodes, text_attribute
from avq.builder.lift.lift import is_quantizer
from avq.builder.lift.linear import DEQUANTIZE, QUANTIZE
from avq.builder.lift.reading import QuantizedFile
from avq.builder.lift.single_node import is_fake_quantize
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.types import AnyArray, SessionOptions

# Quantizers that no runtime loads, expanded into Div, Round, Clip and Mul.


def expand_quantizers(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every quantizer in float operators of the standard domain; integers become whole floats."""
    reading = QuantizedFile.of(model)
    nodes: list[onnx.NodeProto] = []
    for node in reading.nodes:
        if is_quantizer(node) or node.output[0] in reading.integer_clips:
            nodes.extend(_Expander(reading, node).spell())
        else:
            nodes.append(node)
    replace_nodes(reading.proto.graph, nodes)
    used = {node.domain for node in reading.proto.graph.node} | {""}
    kept = [e for e in reading.proto.opset_import if e.domain in used]
    del reading.proto.opset_import[:]
    reading.proto.opset_import.extend(kept)
    return reading.proto


class _Expander:
    """Writes the nodes of one quantizer."""

    def __init__(self, reading: QuantizedFile, node: onnx.NodeProto) -> None:
        self._reading, self._node = reading, node
        self._nodes: list[onnx.NodeProto] = []

    def spell(self) -> list[onnx.NodeProto]:
        if is_fake_quantize(self._node):
            self._fake_quantize()
        elif self._node.op_type == "BipolarQuant":
            self._bipolar()
        elif self._node.op_type in QUANTIZE:
            self._quantize_linear()
        elif self._node.op_type in DEQUANTIZE:
            self._dequantize_linear()
        elif self._node.op_type == "Clip":
            self._clip()
        else:
            self._quant()
        return self._nodes

    def _quantize_linear(self) -> None:
        x, scale = self._node.input[:2]
        rank = self._reading.rank(x)
        steps = self._op("Round", self._op("Div", x, self._spread(scale, rank)))
        zero_point = self._node.input[2] if len(self._node.input) > 2 else ""
        kind = np.uint8 if not zero_point else self._value(zero_point).dtype
        if zero_point:
            steps = self._op("Add", steps, self._spread(zero_point, rank))
        ends = np.iinfo(kind)
        self._between(steps, float(ends.min), float(ends.max))

    def _dequantize_linear(self) -> None:
        stored, scale = self._node.input[:2]
        rank = self._reading.rank(stored)
        if stored in self._reading.constants:
            stored = self._op("Cast", stored)
            self._nodes[-1].attribute.append(helper.make_attribute("to", onnx.TensorProto.FLOAT))
        if len(self._node.input) > 2 and self._node.input[2]:
            stored = self._op("Sub", stored, self._spread(self._node.input[2], rank))
        self._op("Mul", stored, self._spread(scale, rank), result=self._node.output[0])

    def _clip(self) -> None:
        low, high = (float(np.ravel(self._value(end))[0]) for end in self._node.input[1:3])
        self._between(self._node.input[0], low, high)

    def _between(self, steps: str, low: float, high: float) -> None:
        above = self._op("Max", steps, self._number(low))
        self._op("Min", above, self._number(high), result=self._node.output[0])

    def _spread(self, name: str, rank: int) -> str:
        """A scale or zero point in float, broadcasting along the node's axis."""
        values = self._value(name).astype(np.float32)
        if values.size > 1:
            axis = int_attribute(self._node, "axis", 1) % rank
            values = values.reshape([-1 if i == axis else 1 for i in range(rank)])
        return self._reading.add_constant(f"{self._node.output[0]}/{name}", values)

    def _quant(self) -> None:
        x, scale, zero_point, bits = self._node.input
        width = int(np.ravel(self._value(bits))[0])
        low, high = _ends(
            width, int_attribute(self._node, "signed", 1), int_attribute(self._node, "narrow", 0)
        )
        steps = self._op("Add", self._op("Div", x, scale), zero_point)
        steps = self._op("Min", self._op("Max", steps, self._number(low)), self._number(high))
        rounded = self._round(steps, text_attribute(self._node, "rounding_mode", "ROUND").upper())
        self._op("Mul", self._op("Sub", rounded, zero_point), scale, result=self._node.output[0])

    def _round(self, steps: str, mode: str) -> str:
        if mode in ("ROUND", "HALF_EVEN"):
            return self._op("Round", steps)
        if mode == "HALF_UP":
            return self._op("Floor", self._op("Add", steps, self._number(0.5)))
        if mode in ("CEIL", "UP"):
            return self._op("Ceil", steps)
        if mode in ("FLOOR", "DOWN"):
            return self._op("Floor", steps)
        return self._op("Mul", self._op("Sign", steps), self._op("Floor", self._op("Abs", steps)))

    def _bipolar(self) -> None:
        x, scale = self._node.input
        positive = self._op("Not", self._op("Less", x, self._number(0.0)))
        sign = self._op("Where", positive, self._number(1.0), self._number(-1.0))
        self._op("Mul", sign, scale, result=self._node.output[0])

    def _fake_quantize(self) -> None:
        x, low, high, out_low, out_high = self._node.input
        steps = self._number(float(int_attribute(self._node, "levels", 256) - 1))
        inside = self._op("Min", self._op("Max", x, low), high)
        share = self._op("Div", self._op("Sub", inside, low), self._op("Sub", high, low))
        level = self._op("Div", self._op("Round", self._op("Mul", share, steps)), steps)
        span = self._op("Sub", out_high, out_low)
        self._op("Add", self._op("Mul", level, span), out_low, result=self._node.output[0])

    def _op(self, op: str, *inputs: str, result: str = "") -> str:
        name = f"{self._node.output[0]}/expanded{len(self._nodes)}"
        output = result or name
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=name))
        return output

    def _value(self, name: str) -> np.ndarray:
        value = self._reading.array(name)
        return np.zeros(()) if value is None else np.asarray(value)

    def _number(self, value: float) -> str:
        graph = self._reading.proto.graph
        name = fresh_name(graph, f"{self._node.output[0]}/number")
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name


def _ends(bits: int, signed: int, narrow: int) -> tuple[float, float]:
    if signed:
        return float(-(2 ** (bits - 1)) + narrow), float(2 ** (bits - 1) - 1)
    return 0.0, float(2**bits - 1 - narrow)


# Sums of rounded values differ by rounding where a file's arithmetic is not float32's; 60 dB is a thousandth.
MIN_SQNR_DB = 60.0


@dataclass(frozen=True)
class Parity:
    """Difference between an import and its source.

    Attributes:
        equal: the same numbers, to the bit or within the limits in ``summary``.
        exact: to the bit.
        summary: one sentence with the numbers, for the verdict.
    """

    equal: bool
    exact: bool
    summary: str


@dataclass(frozen=True)
class Source:
    """The opened source file; ``expanded`` when the runtime could not load it as it is."""

    session: Session
    expanded: bool


def open_source(source: onnx.ModelProto, engine: Engine, options: SessionOptions) -> Source:
    """The file itself, or where the runtime does not know its operators, expanded out in ones it knows.

    Raises AvqError when neither can be opened.
    """
    try:
        return Source(engine.open(source.SerializeToString(), options), expanded=False)
    except AvqError:
        return Source(engine.open(expand_quantizers(source).SerializeToString(), options), expanded=True)


def prove(
    source: onnx.ModelProto,
    lowered: bytes,
    engine: Engine,
    feeds: Sequence[tuple[Mapping[str, AnyArray], Mapping[str, AnyArray]]],
    *,
    last_step: Mapping[str, float] | None = None,
    threads: int = 1,
) -> Parity:
    """Compare ``lowered`` with ``source`` on every pair of feeds (source's, lowered's).

    ``last_step`` is the scale of each quantized output: one step of it is a rounding, not an error.
    """
    options = SessionOptions(threads=threads, optimise=False)
    try:
        opened = open_source(source, engine, options)
    except AvqError as error:
        return Parity(False, False, f"the source cannot be run: {error.what} {error.seen}".strip())
    ours = engine.open(lowered, options)
    difference = _Difference(dict(last_step or {}))
    try:
        for theirs_fed, ours_fed in feeds:
            theirs = {name: np.array(value) for name, value in opened.session.run(theirs_fed).items()}
            difference.add(theirs, ours.run(ours_fed))
    finally:
        opened.session.close()
        ours.close()
    return difference.parity(len(feeds), expanded=opened.expanded)


class _Difference:
    """Accumulates the difference between two models' outputs."""

    def __init__(self, last_step: dict[str, float]) -> None:
        self._last_step = last_step
        self._values = self._unequal = 0
        self._signal = self._noise = 0.0
        self._steps = 0.0  # largest difference in steps of its output's scale; inf where it has none

    def add(self, theirs: Mapping[str, AnyArray], ours: Mapping[str, AnyArray]) -> None:
        for name, value in theirs.items():
            gap = np.abs(np.asarray(value, np.float64) - np.asarray(ours[name], np.float64))
            self._values += gap.size
            self._unequal += int(np.count_nonzero(gap) + np.count_nonzero(~np.isfinite(gap)))
            self._signal += float(np.sum(np.square(np.asarray(value, np.float64))))
            self._noise += float(np.sum(np.square(gap)))
            worst = float(np.max(gap, initial=0.0))
            self._steps = max(self._steps, worst / self._last_step[name] if name in self._last_step else 0.0)
            if worst and name not in self._last_step:
                self._steps = np.inf

    def parity(self, inputs: int, *, expanded: bool) -> Parity:
        how = "expanded out in plain operators, " if expanded else ""
        where = f"the source file ({how}unoptimised) on {inputs} inputs, {self._values} values"
        if self._unequal == 0:
            return Parity(True, True, f"import proven: bit-equal to {where}")
        share = f"{self._unequal} of {self._values} values differ"
        if self._steps <= 1.0 + 1e-3:
            return Parity(
                True, False, f"import proven: within one step of the last scale of {where}; {share}"
            )
        sqnr_db = 10.0 * np.log10(self._signal / self._noise) if self._noise else np.inf
        if sqnr_db >= MIN_SQNR_DB:
            summary = f"import proven: {sqnr_db:.0f} dB (rounding of sums) from {where}; {share}"
            return Parity(True, False, summary)
        return Parity(False, False, f"AVQ-Q41 the import differs from {where}: {sqnr_db:.1f} dB, {share}")
