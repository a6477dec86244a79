"""Golden frames: a few inputs with the answers the bundle was accepted for, asked of an engine again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avq.bundle import GOLDEN, OpenBundle
from avq.decoders import DetectionDecoder, builtin_decoders
from avq.decoders.recognise import find_decoder
from avq.errors import AvqError, BundleError
from avq.hookspecs import Decoder, Session
from avq.measure.fidelity import FIRM_SCORE, matched_shifts
from avq.measure.rows import ChosenRows
from avq.measure.sqnr import SqnrMeter
from avq.types import U8, AnyArray, DecoderSpec, Detections, ModelInput, RawOutputs

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


def ask_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenAnswer:
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
        if spec is not None and spec.family != "none" and find_decoder(spec.family, known).nms_in_graph:
            return _by_boxes(frames, session, spec, known)
        return _by_noise(frames, session, _limit_db(bundle, session), bundle.arrays(GOLDEN))
    except AvqError as error:
        return GoldenAnswer(False, f"{error.what}: {error.seen}", len(frames))


def require_golden(bundle: OpenBundle, session: Session, families: Sequence[Decoder] = ()) -> GoldenAnswer:
    """`ask_golden`, with BundleError when the answers are not those."""
    answer = ask_golden(bundle, session, families)
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
    meter, chosen = SqnrMeter(), ChosenRows.from_arrays(arrays)
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
