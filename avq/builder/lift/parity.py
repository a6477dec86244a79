"""Proof of an import: the source file and the lowered plan, both unoptimised, on the same pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from avq.builder.lift.spell_out import spell_out
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.types import AnyArray, SessionOptions

# Sums of rounded values differ by rounding where a file's arithmetic is not float32's; 60 dB is a thousandth.
MIN_SQNR_DB = 60.0


@dataclass(frozen=True)
class Parity:
    """How far the import is from its source.

    Attributes:
        equal: it computes the same, to the bit or within what ``said`` explains.
        exact: to the bit.
        said: one sentence with the numbers, for the verdict.
    """

    equal: bool
    exact: bool
    said: str


@dataclass(frozen=True)
class Source:
    """The opened source file; ``spelled`` when the runtime could not load it as it is."""

    session: Session
    spelled: bool


def open_source(source: onnx.ModelProto, engine: Engine, options: SessionOptions) -> Source:
    """The file itself, or where the runtime does not know its operators, spelled out in ones it knows.

    Raises AvqError when neither can be opened.
    """
    try:
        return Source(engine.open(source.SerializeToString(), options), spelled=False)
    except AvqError:
        return Source(engine.open(spell_out(source).SerializeToString(), options), spelled=True)


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
    return difference.parity(len(feeds), spelled=opened.spelled)


class _Difference:
    """What was seen of two models' answers."""

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

    def parity(self, inputs: int, *, spelled: bool) -> Parity:
        how = "spelled out in plain operators, " if spelled else ""
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
            said = f"import proven: {sqnr_db:.0f} dB (rounding of sums) from {where}; {share}"
            return Parity(True, False, said)
        return Parity(False, False, f"AVQ-Q41 the import differs from {where}: {sqnr_db:.1f} dB, {share}")
