"""Rows that a graph chose (TopK, NonMaxSuppression), paired whatever their order: a tie may turn two round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avq.compare import one_to_one
from avq.types import F64, I64, AnyArray

_AXIS, _STEADY = "rows:", "steady_"
#: How many decibels a single row may be worse than all of them together.
_ROW_DB = 10.0


@dataclass(frozen=True)
class Paired:
    """Rows of two answers that belong together.

    Attributes:
        expected, found: the outputs, rows in the same order (pairs, values of a row); other outputs as they were.
        rows: that were expected and keep their place when the picture hardly changes.
        alone: rows of these without a partner, and found ones that nobody expected.
    """

    expected: Mapping[str, AnyArray]
    found: Mapping[str, AnyArray]
    rows: int
    alone: int


@dataclass(frozen=True)
class ChosenRows:
    """Which outputs hold chosen rows.

    Attributes:
        places: output -> (axis of its rows, number of the choice); those of one choice are ordered alike.
    """

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> ChosenRows:
        """As `as_arrays` gave them, among others."""
        names = [name for name in arrays if name.startswith(_AXIS)]
        return cls({name[len(_AXIS) :]: (int(arrays[name][0]), int(arrays[name][1])) for name in names})

    def as_arrays(self) -> dict[str, AnyArray]:
        return {f"{_AXIS}{name}": np.array(place, np.int64) for name, place in self.places.items()}

    def steady(
        self,
        frame: int,
        outputs: Mapping[str, AnyArray],
        again: Sequence[Mapping[str, AnyArray]],
        limit_db: float,
    ) -> dict[str, AnyArray]:
        """Arrays that tell which rows of ``outputs`` have a partner in every answer of ``again``, by choice.

        Rows at the end of the chosen ones change places with others for less than a rounding.
        """
        kept: dict[str, AnyArray] = {}
        for choice, names in self._choices().items():
            ours = self._tables(names, outputs)
            times = np.zeros(len(next(iter(ours.values()))), int)
            for answer in again:
                times[_pairs(ours, self._tables(names, answer), limit_db)[:, 0]] += 1
            kept[f"{_STEADY}{frame}:{choice}"] = times == len(again)
        return kept

    def pair(
        self,
        frame: int,
        expected: Mapping[str, AnyArray],
        found: Mapping[str, AnyArray],
        arrays: Mapping[str, AnyArray],
        limit_db: float,
    ) -> Paired:
        """Pair the rows of two answers to golden frame ``frame``.

        Outputs that are missing, or of other shapes but for their rows, are left for the comparison to tell.

        Args:
            arrays: hold what `steady` gave.
            limit_db: what the engine must reach over all rows.
        """
        ours, theirs = dict(expected), dict(found)
        rows = alone = 0
        for choice, names in self._choices().items():
            if not self._comparable(names, expected, found):
                continue
            left, right = self._tables(names, expected), self._tables(names, found)
            pairs = _pairs(left, right, limit_db)
            ours |= {name: table[pairs[:, 0]] for name, table in left.items()}
            theirs |= {name: table[pairs[:, 1]] for name, table in right.items()}
            steady = arrays[f"{_STEADY}{frame}:{choice}"].astype(bool)
            rows += int(steady.sum())
            alone += int(steady.sum() - steady[pairs[:, 0]].sum())
            unexpected = len(next(iter(right.values()))) - len(pairs)
            alone += max(0, unexpected - int((~steady).sum()))
        return Paired(ours, theirs, rows, alone)

    def _choices(self) -> dict[int, list[str]]:
        choices: dict[int, list[str]] = {}
        for name, (_, choice) in self.places.items():
            choices.setdefault(choice, []).append(name)
        return choices

    def _tables(self, names: list[str], outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Each output as (rows, values of a row)."""
        tables = {}
        for name in names:
            moved = np.moveaxis(np.asarray(outputs[name]), self.places[name][0], 0)
            tables[name] = moved.reshape(len(moved), int(np.prod(moved.shape[1:])))
        return tables

    def _comparable(
        self, names: list[str], expected: Mapping[str, AnyArray], found: Mapping[str, AnyArray]
    ) -> bool:
        counts = set()
        for name in names:
            axis = self.places[name][0]
            ours, theirs = expected[name], found.get(name)
            if theirs is None or np.ndim(theirs) != np.ndim(ours):
                return False
            if np.delete(np.shape(ours), axis).tolist() != np.delete(np.shape(theirs), axis).tolist():
                return False
            counts.add(np.shape(theirs)[axis])
        return len(counts) == 1


def _pairs(ours: Mapping[str, AnyArray], theirs: Mapping[str, AnyArray], limit_db: float) -> I64:
    """(P, 2) row of ours, row of theirs: nearest first, each once, none further apart than a row may be."""
    distance = _distances(ours, theirs)
    rows, columns = np.nonzero(distance <= 10 ** (-(limit_db - _ROW_DB) / 20))
    nearest_first = np.lexsort((columns, rows, distance[rows, columns]))
    pairs = one_to_one(rows[nearest_first], columns[nearest_first])
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _distances(ours: Mapping[str, AnyArray], theirs: Mapping[str, AnyArray]) -> F64:
    """(N, M) root mean square over a row's values, each as a share of what is usual in its column.

    Integers are labels: rows with other ones are infinitely far apart.
    """
    shape = (len(next(iter(ours.values()))), len(next(iter(theirs.values()))))
    other, energy, values = np.zeros(shape, bool), np.zeros(shape), 0
    for name, ours_of in ours.items():
        theirs_of = theirs[name]
        if ours_of.dtype.kind in "iub":
            other |= (ours_of[:, None, :] != theirs_of[None, :, :]).any(axis=-1)
            continue
        left, right = ours_of.astype(np.float64), theirs_of.astype(np.float64)
        usual = np.sqrt(np.square(left).mean(axis=0)) if len(left) else np.ones(left.shape[1])
        usual[usual == 0.0] = 1.0
        energy += _squared_distances(left / usual, right / usual)
        values += left.shape[1]
    apart: F64 = np.where(other, np.inf, np.sqrt(energy / max(values, 1)))
    return apart


def _squared_distances(a: F64, b: F64) -> F64:
    """(N, F) and (M, F) -> (N, M), a column at a time: rows are few, and may be wide. NaN stays NaN."""
    total = np.zeros((len(a), len(b)))
    for column in range(a.shape[1]):
        total += np.square(a[:, column, None] - b[None, :, column])
    return total
