"""QONNX and FakeQuantize files as they are meant, in Div, Round, Clip and Mul; written without any of avq."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.builder.lift.corpus.dialects import Dialect, NncfFakeQuantize, Qonnx


@dataclass
class QonnxInPlainOperators(Qonnx):
    """Every Quant by its specification: divide, clip, round, multiply."""

    opset: int = 13
    domains: tuple[str, ...] = ()

    def _quant(
        self,
        source: str,
        scale: np.ndarray,
        result: str,
        *,
        signed: bool,
        narrow: bool,
        bits: int,
        zero: float = 0,
    ) -> str:
        low = -(2 ** (bits - 1)) + int(narrow) if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - int(narrow)
        step = self.store(f"{result}_step", scale)
        ends = [self.store(f"{result}_{end}", np.float32(v)) for end, v in (("low", low), ("high", high))]
        steps = self.add("Div", [source, step], f"{result}_1")
        clipped = self.add("Clip", [steps, *ends], f"{result}_2")
        return self.add("Mul", [self.add("Round", [clipped], f"{result}_3"), step], result)


@dataclass
class FakeQuantizeInPlainOperators(NncfFakeQuantize):
    """Every FakeQuantize as x clipped to its ends and rounded to the nearest of its levels."""

    domains: tuple[str, ...] = ()

    def _fake(self, source: str, low: np.ndarray, high: np.ndarray, levels: int, result: str) -> str:
        step = self.store(f"{result}_step", np.asarray((high - low) / (levels - 1), np.float32))
        ends = [
            self.store(f"{result}_{end}", np.asarray(v, np.float32)) for end, v in (("l", low), ("h", high))
        ]
        above = self.add("Max", [source, ends[0]], f"{result}_1")
        inside = self.add("Min", [above, ends[1]], f"{result}_2")
        level = self.add("Round", [self.add("Div", [inside, step], f"{result}_3")], f"{result}_4")
        return self.add("Mul", [level, step], result)


SPELLED: dict[str, Dialect] = {
    "qonnx": QonnxInPlainOperators,
    "nncf-fakequantize": FakeQuantizeInPlainOperators,
}
