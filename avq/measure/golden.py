"""Golden frames: run stored inputs of a bundle on an engine and compare with the outputs it was accepted with."""

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
from avq.types.arrays import ArrayRecord

# Pairing of rows selected in the graph (TopK, NonMaxSuppression): rounding may swap rows of nearly equal score.

_AXIS, _STABLE = "rows:", "steady_"
#: Margin by which a single row may be worse than the limit over all rows.
_ROW_DB = 10.0


@dataclass(frozen=True, eq=False)
class PairedRows(ArrayRecord):
    """Two sets of outputs whose rows are in the same order.

    Attributes:
        expected: golden outputs; paired ones as (pairs, values per row), others unchanged.
        actual: outputs of the engine, in the same form.
        rows: number of expected rows that are stable under small changes of the input.
        unpaired: stable rows without a partner, and unexpected rows.
    """

    expected: Mapping[str, AnyArray]
    actual: Mapping[str, AnyArray]
    rows: int
    unpaired: int

    def __post_init__(self) -> None:
        self._freeze("expected", "actual")


@dataclass(frozen=True)
class RowPairing:
    """Outputs whose rows are selected in the graph.

    Attributes:
        places: output -> (axis of its rows, number of the selection); outputs of one selection share their order.
    """

    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> RowPairing:
        """Restore from the arrays of ``as_arrays``; others are ignored."""
        names = [name for name in arrays if name.startswith(_AXIS)]
        return cls({name[len(_AXIS) :]: (int(arrays[name][0]), int(arrays[name][1])) for name in names})

    def as_arrays(self) -> dict[str, AnyArray]:
        return {f"{_AXIS}{name}": np.array(place, np.int64) for name, place in self.places.items()}

    def stable_rows(
        self,
        frame: int,
        outputs: Mapping[str, AnyArray],
        again: Sequence[Mapping[str, AnyArray]],
        limit_db: float,
    ) -> dict[str, AnyArray]:
        """Return per selection a bool array: rows of ``outputs`` with a partner in every run of ``again``.

        The last rows of a selection change with the slightest rounding.

        Args:
            frame: number of the golden frame.
            outputs: name -> golden output.
            again: outputs of further runs on slightly changed inputs.
            limit_db: SQNR that the engine must reach over all rows.
        """
        stable: dict[str, AnyArray] = {}
        for selection, names in self._selections().items():
            expected = self._tables(names, outputs)
            counts = np.zeros(len(next(iter(expected.values()))), int)
            for run in again:
                counts[_pairs(expected, self._tables(names, run), limit_db)[:, 0]] += 1
            stable[f"{_STABLE}{frame}:{selection}"] = counts == len(again)
        return stable

    def pair(
        self,
        frame: int,
        expected: Mapping[str, AnyArray],
        actual: Mapping[str, AnyArray],
        arrays: Mapping[str, AnyArray],
        limit_db: float,
    ) -> PairedRows:
        """Pair the rows of two runs on golden frame ``frame``.

        Outputs that are missing, or differ in shape other than the number of rows, are left as they are: the
        comparison reports them.

        Args:
            frame: number of the golden frame.
            expected: name -> golden output.
            actual: name -> output of the engine.
            arrays: include those of ``stable_rows``.
            limit_db: SQNR that the engine must reach over all rows.
        """
        paired_expected, paired_actual = dict(expected), dict(actual)
        rows = unpaired = 0
        for selection, names in self._selections().items():
            if not self._comparable(names, expected, actual):
                continue
            left, right = self._tables(names, expected), self._tables(names, actual)
            pairs = _pairs(left, right, limit_db)
            paired_expected |= {name: table[pairs[:, 0]] for name, table in left.items()}
            paired_actual |= {name: table[pairs[:, 1]] for name, table in right.items()}
            stable = arrays[f"{_STABLE}{frame}:{selection}"].astype(bool)
            rows += int(stable.sum())
            unpaired += int(stable.sum() - stable[pairs[:, 0]].sum())
            unexpected = len(next(iter(right.values()))) - len(pairs)
            unpaired += max(0, unexpected - int((~stable).sum()))
        return PairedRows(paired_expected, paired_actual, rows, unpaired)

    def _selections(self) -> dict[int, list[str]]:
        selections: dict[int, list[str]] = {}
        for name, (_, selection) in self.places.items():
            selections.setdefault(selection, []).append(name)
        return selections

    def _tables(self, names: list[str], outputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Return each output as (rows, values per row)."""
        tables = {}
        for name in names:
            moved = np.moveaxis(np.asarray(outputs[name]), self.places[name][0], 0)
            tables[name] = moved.reshape(len(moved), int(np.prod(moved.shape[1:])))
        return tables

    def _comparable(
        self, names: list[str], expected: Mapping[str, AnyArray], actual: Mapping[str, AnyArray]
    ) -> bool:
        counts = set()
        for name in names:
            axis = self.places[name][0]
            left, right = expected[name], actual.get(name)
            if right is None or np.ndim(right) != np.ndim(left):
                return False
            if np.delete(np.shape(left), axis).tolist() != np.delete(np.shape(right), axis).tolist():
                return False
            counts.add(np.shape(right)[axis])
        return len(counts) == 1


def _pairs(expected: Mapping[str, AnyArray], actual: Mapping[str, AnyArray], limit_db: float) -> I64:
    """Return (P, 2) expected row, actual row: nearest first, each once, within the limit of a row."""
    distance = _distances(expected, actual)
    rows, columns = np.nonzero(distance <= 10 ** (-(limit_db - _ROW_DB) / 20))
    nearest_first = np.lexsort((columns, rows, distance[rows, columns]))
    pairs = one_to_one(rows[nearest_first], columns[nearest_first])
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _distances(expected: Mapping[str, AnyArray], actual: Mapping[str, AnyArray]) -> F64:
    """Return (N, M) RMS distances of rows, each value relative to the RMS of its column.

    Integers are labels: rows with different ones are infinitely far apart.
    """
    shape = (len(next(iter(expected.values()))), len(next(iter(actual.values()))))
    differs, energy, values = np.zeros(shape, bool), np.zeros(shape), 0
    for name, table in expected.items():
        other = actual[name]
        if table.dtype.kind in "iub":
            differs |= (table[:, None, :] != other[None, :, :]).any(axis=-1)
            continue
        left, right = table.astype(np.float64), other.astype(np.float64)
        scale = np.sqrt(np.square(left).mean(axis=0)) if len(left) else np.ones(left.shape[1])
        scale[scale == 0.0] = 1.0
        energy += _squared_distances(left / scale, right / scale)
        values += left.shape[1]
    distances: F64 = np.where(differs, np.inf, np.sqrt(energy / max(values, 1)))
    return distances


def _squared_distances(a: F64, b: F64) -> F64:
    """Return (N, M) of (N, F) and (M, F), column by column: rows are few and may be wide. NaN stays NaN."""
    total = np.zeros((len(a), len(b)))
    for column in range(a.shape[1]):
        total += np.square(a[:, column, None] - b[None, :, column])
    return total


#: Smallest SQNR of the worst output. Rounding leaves correct INT8 engines at 26 dB or more from each other, wrong
#: kernels at 11 to 14 dB; FP16 and BF16 stay above 30 dB, FP32 above 80 dB.
_LIMITS_DB = {"int8": 20.0, "f16": 25.0, "bf16": 25.0, "f32": 50.0}
#: Engines that round more: TF32 and fused sums on a GPU.
_ENGINE_LIMITS_DB = {("tensorrt", "f32"): 35.0, ("tensorrt-rtx", "f32"): 35.0}
#: Boxes or rows selected in the graph that rounding may change: one, plus this share.
_MAX_UNPAIRED = 0.01


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """Comparison of an engine with a bundle's golden outputs.

    Attributes:
        passed: the outputs agree within the limit.
        reason: one line; names the worst output.
        frames: number of golden frames.
        worst_sqnr_db: SQNR of the noisiest output; inf where nothing differs, None where boxes were compared.
        limit_db: smallest accepted SQNR of this engine.
    """

    passed: bool
    reason: str
    frames: int
    worst_sqnr_db: float | None = None
    limit_db: float | None = None


def golden_inputs(bundle: OpenBundle) -> tuple[U8, ...]:
    """Return the bundle's golden network inputs, (1, 3, h, w) uint8. Raises BundleError when it has none."""
    return tuple(tensor for tensor, _ in _frames(bundle))


def run_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenResult:
    """Run every golden frame through ``session`` and compare with the golden outputs.

    Raw outputs are compared by SQNR, rows selected in the graph in any order; with NMS in the graph and a known
    decoder, boxes are compared. Outputs that are not finite or have other names or shapes fail the comparison.

    Args:
        bundle: holds the golden frames.
        session: the engine to check.
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
        return GoldenResult(False, f"{error.what}: {error.seen}", len(frames))


def require_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenResult:
    """Return the result of ``run_golden``. Raises BundleError when the outputs do not agree."""
    result = run_golden(bundle, session, families)
    if not result.passed:
        raise BundleError(
            f"{session.engine} does not reproduce the golden outputs of the bundle {bundle.path}",
            seen=result.reason,
            fix=f"run 'avq compile {bundle.path}' to build and verify the engine on this machine",
        )
    return result


def limit_of(engine: str, precision: str) -> float:
    """Return the smallest accepted SQNR in dB of an engine in ``precision``; its coarsest part decides."""
    parts = [part for part in precision.split("+") if part in _LIMITS_DB] or ["int8"]
    return min(_ENGINE_LIMITS_DB.get((engine, part), _LIMITS_DB[part]) for part in parts)


def _limit_db(bundle: OpenBundle, session: Session) -> float:
    recorded = bundle.manifest.engine
    return min(limit_of(session.engine, session.precision), limit_of(recorded.name, recorded.precision))


_Frame = tuple[U8, Mapping[str, AnyArray]]


def _by_noise(
    frames: Sequence[_Frame], session: Session, limit_db: float, arrays: Mapping[str, AnyArray]
) -> GoldenResult:
    meter, pairing = SqnrMeter(), RowPairing.from_arrays(arrays)
    rows = unpaired = 0
    for number, (tensor, expected) in enumerate(frames):
        paired = pairing.pair(number, expected, session.infer(tensor), arrays, limit_db)
        meter.add(paired.expected, paired.actual)
        rows, unpaired = rows + paired.rows, unpaired + paired.unpaired
    by_output = meter.result_db()
    name = min(by_output, key=by_output.__getitem__)
    worst = by_output[name]
    reason = (
        f"SQNR of output '{name}' over {len(frames)} golden frames: {worst:.1f} dB (limit {limit_db:g} dB)"
    )
    if unpaired:
        reason = f"{unpaired} of {rows} rows selected in the graph have no partner; {reason}"
    passed = worst >= limit_db and unpaired <= 1 + _MAX_UNPAIRED * rows
    return GoldenResult(passed, reason, len(frames), worst, limit_db)


def _by_boxes(
    frames: Sequence[_Frame], session: Session, spec: DecoderSpec, families: Sequence[Decoder]
) -> GoldenResult:
    decoder = DetectionDecoder(spec, families)
    boxes = unmatched = 0
    for tensor, outputs in frames:
        expected, actual = (_boxes(decoder, tensor, raw) for raw in (outputs, session.infer(tensor)))
        for boxes_a, boxes_b in ((expected, actual), (actual, expected)):  # lost boxes, then unexpected ones
            firm = boxes_a.above(FIRM_SCORE)
            boxes += len(firm)
            unmatched += len(firm) - len(matched_shifts(firm, boxes_b))
    reason = f"{unmatched} of {boxes} boxes have no partner over {len(frames)} golden frames"
    return GoldenResult(unmatched <= 1 + _MAX_UNPAIRED * boxes, reason, len(frames))


def _boxes(decoder: DetectionDecoder, tensor: U8, raw: RawOutputs) -> Detections:
    """Decode boxes in pixels of the network input."""
    height, width = tensor.shape[2:]
    model_input = ModelInput(tensor, np.eye(2, 3), (width, height))
    return decoder.decode(raw, model_input, score_threshold=FIRM_SCORE / 2)


def _frames(bundle: OpenBundle) -> list[_Frame]:
    if not bundle.has(GOLDEN):
        raise _without(bundle)
    arrays = bundle.arrays(GOLDEN)
    frames: list[_Frame] = []
    while (tensor := arrays.get(f"input_{len(frames)}")) is not None:
        prefix = f"output_{len(frames)}:"
        expected = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
        frames.append((np.ascontiguousarray(tensor, np.uint8), expected))
    if not frames:
        raise _without(bundle)
    return frames


def _without(bundle: OpenBundle) -> BundleError:
    return BundleError(
        f"the bundle {bundle.path} has no golden outputs to compare with",
        seen=f"no {GOLDEN}",
        fix="build the bundle again: avq build writes golden frames",
    )
