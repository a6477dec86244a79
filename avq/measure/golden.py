"""Golden frames: a few inputs with the answers the bundle was accepted for, asked of an engine again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from avq.bundle import GOLDEN, OpenBundle
from avq.compare import one_to_one
from avq.decoders import DetectionDecoder, builtin_decoders
from avq.decoders.recognise import find_decoder
from avq.errors import AvqError, BundleError
from avq.hookspecs import Decoder, Session
from avq.measure.fidelity import FIRM_SCORE, SqnrMeter, matched_shifts
from avq.types import F64, I64, U8, AnyArray, DecoderSpec, Detections, ModelInput, RawOutputs

# Rows that a graph chose (TopK, NonMaxSuppression), paired whatever their order: a tie may turn two
# round.

_AXIS, _STEADY = "rows:", "steady_"
#: How many decibels a single row may be worse than all of them together.
_ROW_DB = 10.0


@dataclass(frozen=True)
class PairedRows:
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
class RowPairing:
    """Which outputs hold chosen rows.

    Attributes:
        places: output -> (axis of its rows, number of the choice); those of one choice are ordered alike.
    """

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> RowPairing:
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
    ) -> PairedRows:
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
        return PairedRows(ours, theirs, rows, alone)

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


#: Decibels of the worst output below which an engine is not what was accepted. Rounding flips leave right INT8
#: engines at 26 dB or more from each other, wrong kernels at 11 to 14; FP16 and BF16 stay above 30, FP32 above 80.
_LIMITS_DB = {"int8": 20.0, "f16": 25.0, "bf16": 25.0, "f32": 50.0}
#: What a runtime rounds besides: TF32 and fused sums on a GPU.
_ENGINE_LIMITS_DB = {("tensorrt", "f32"): 35.0, ("tensorrt-rtx", "f32"): 35.0}
#: Boxes or rows that may differ where the graph chooses them, and so rounding may choose others: one, and 1 of 100.
_MOST_LOST = 0.01


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """How an engine did on a bundle's golden frames.

    Attributes:
        right: it is the engine that was accepted, as far as these frames tell.
        why: one line; names the output.
        frames: how many were asked.
        worst_sqnr_db: of the noisiest output, against the golden answers; inf where nothing differs, None where
            boxes were compared.
        limit_db: what this engine must reach.
    """

    right: bool
    why: str
    frames: int
    worst_sqnr_db: float | None = None
    limit_db: float | None = None


def golden_inputs(bundle: OpenBundle) -> tuple[U8, ...]:
    """The bundle's golden network inputs, (1, 3, h, w) uint8. Raises BundleError when it has none."""
    return tuple(tensor for tensor, _ in _frames(bundle))


def run_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenAnswer:
    """Run every golden frame through ``session`` and compare with what the bundle was accepted for.

    Raw outputs are compared by their noise, rows that the graph chose in whatever order; where NMS is in the graph
    and a decoder is known, the boxes are. Outputs that are not finite, or of other names or shapes, are wrong, not
    errors.

    Args:
        families: head families of plugins.

    Raises:
        BundleError: the bundle has no golden frames.
    """
    frames, spec = _frames(bundle), bundle.manifest.decoder
    known = (*builtin_decoders(), *families)
    try:
        package = bundle.manifest.decoder_package or ""
        named = spec is not None and spec.family != "none"
        if spec is not None and named and find_decoder(spec.family, known, package).nms_in_graph:
            return _by_boxes(frames, session, spec, known)
        return _by_noise(frames, session, _limit_db(bundle, session), bundle.arrays(GOLDEN))
    except AvqError as error:
        return GoldenAnswer(False, f"{error.what}: {error.seen}", len(frames))


def require_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenAnswer:
    """`run_golden`, with BundleError when the answers are not those."""
    answer = run_golden(bundle, session, families)
    if not answer.right:
        raise BundleError(
            f"{session.engine} does not compute what the bundle {bundle.path} was accepted for",
            seen=answer.why,
            fix=f"avq compile {bundle.path} builds and proves it on this machine",
        )
    return answer


def limit_of(engine: str, precision: str) -> float:
    """Decibels asked of an engine that runs in ``precision``; its coarsest part decides."""
    parts = [part for part in precision.split("+") if part in _LIMITS_DB] or ["int8"]
    return min(_ENGINE_LIMITS_DB.get((engine, part), _LIMITS_DB[part]) for part in parts)


def _limit_db(bundle: OpenBundle, session: Session) -> float:
    recorded = bundle.manifest.engine
    return min(limit_of(session.engine, session.precision), limit_of(recorded.name, recorded.precision))


_Frame = tuple[U8, Mapping[str, AnyArray]]


def _by_noise(
    frames: Sequence[_Frame], session: Session, limit_db: float, arrays: Mapping[str, AnyArray]
) -> GoldenAnswer:
    meter, chosen = SqnrMeter(), RowPairing.from_arrays(arrays)
    rows = alone = 0
    for number, (tensor, expected) in enumerate(frames):
        paired = chosen.pair(number, expected, session.infer(tensor), arrays, limit_db)
        meter.add(paired.expected, paired.found)
        rows, alone = rows + paired.rows, alone + paired.alone
    by_output = meter.result_db()
    name = min(by_output, key=by_output.__getitem__)
    worst = by_output[name]
    why = f"output '{name}' agrees to {worst:.1f} dB over {len(frames)} golden frames (limit {limit_db:g} dB)"
    if alone:
        why = f"{alone} of {rows} rows that the graph chooses have no partner; {why}"
    right = worst >= limit_db and alone <= 1 + _MOST_LOST * rows
    return GoldenAnswer(right, why, len(frames), worst, limit_db)


def _by_boxes(
    frames: Sequence[_Frame], session: Session, spec: DecoderSpec, families: Sequence[Decoder]
) -> GoldenAnswer:
    decoder = DetectionDecoder(spec, families)
    boxes = unmatched = 0
    for tensor, outputs in frames:
        expected, found = (_boxes(decoder, tensor, raw) for raw in (outputs, session.infer(tensor)))
        for some, others in ((expected, found), (found, expected)):  # lost ones, and ones nobody asked for
            firm = some.above(FIRM_SCORE)
            boxes += len(firm)
            unmatched += len(firm) - len(matched_shifts(firm, others))
    why = f"{unmatched} of {boxes} boxes have no partner over {len(frames)} golden frames"
    return GoldenAnswer(unmatched <= 1 + _MOST_LOST * boxes, why, len(frames))


def _boxes(decoder: DetectionDecoder, tensor: U8, raw: RawOutputs) -> Detections:
    """In network-input pixels."""
    height, width = tensor.shape[2:]
    same = ModelInput(tensor, np.eye(2, 3), (width, height))
    return decoder.decode(raw, same, score_threshold=FIRM_SCORE / 2)


def _frames(bundle: OpenBundle) -> list[_Frame]:
    if not bundle.has(GOLDEN):
        raise _without(bundle)
    arrays = bundle.arrays(GOLDEN)
    found: list[_Frame] = []
    while (tensor := arrays.get(f"input_{len(found)}")) is not None:
        mark = f"output_{len(found)}:"
        expected = {name[len(mark) :]: array for name, array in arrays.items() if name.startswith(mark)}
        found.append((np.ascontiguousarray(tensor, np.uint8), expected))
    if not found:
        raise _without(bundle)
    return found


def _without(bundle: OpenBundle) -> BundleError:
    return BundleError(
        f"the bundle {bundle.path} has no golden frames",
        seen="nothing tells here what it was accepted for",
        fix="build it again: avq build writes them",
    )
