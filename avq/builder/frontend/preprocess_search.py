"""Search for the preprocessing that a network was trained with: the one with the highest certainty on pictures.

Certainty is the score of the best boxes that the network finds again in the mirrored picture.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from avq.builder.frontend.fold_input import normalise_picture
from avq.builder.graph.model import FloatModel
from avq.compare import iou_matrix
from avq.decoders import DetectionDecoder
from avq.errors import DataError
from avq.hookspecs import Decoder
from avq.preprocess import PRESETS, Preprocessor
from avq.types import U8, AnyArray, DecoderSpec, Detections, PreprocessSpec, RawOutputs

Run = Callable[[AnyArray], RawOutputs]
Infer = Callable[[FloatModel], Run]

MOST_PICTURES = 16
_TOP_BOXES = 8
_LOWEST_SCORE = 0.1
# Sigmoid of 13.8: two-stage networks score 0.9999 for each car of a queue; eight scores above mean overflow.
_SATURATED = 0.999999
# Offsets of the best boxes, as shares of width and height, that measure overlap by chance.
_CHANCE_SHIFTS = ((0.25, 0.0), (0.5, 0.25), (0.75, 0.5), (0.375, 0.75))
# Two geometries or colour orders differ by this much on 16 pictures from chance alone.
_NEAR = 0.10
_CLEARLY_WORSE = 2 / 3
_FIRST_PICTURES = 4
_WORKERS = min(4, os.cpu_count() or 1)
_HOPELESS = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A preprocessing to try.

    Attributes:
        label: for messages.
        published: whether the family's authors train with it.
    """

    label: str
    spec: PreprocessSpec
    published: bool = True


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The chosen preprocessing, and (label, certainty) of every candidate."""

    spec: PreprocessSpec
    scores: tuple[tuple[str, float], ...]
    messages: tuple[str, ...]
    warnings: tuple[str, ...]


def variants(published: Sequence[PreprocessSpec], fixed_range: float | None) -> list[Candidate]:
    """Published preprocessings, then RGB/BGR and the usual number ranges in the first one's geometry.

    Args:
        published: most likely first.
        fixed_range: 255.0 or 1.0 for a graph that normalises pictures itself: only geometry and order vary.

    Returns:
        Candidates with distinct inputs.
    """
    specs = list(published)
    for order in ("RGB", "BGR"):
        ordered = replace(published[0], channel_order=order, mean=(0.0,) * 3, std=(1.0,) * 3)
        specs += [replace(ordered, scale=scale) for scale in (1.0 / 255.0, 1.0)]
        norm = PRESETS["imagenet" if order == "RGB" else "imagenet-bgr"](1, 1)
        specs.append(replace(ordered, scale=norm.scale, mean=norm.mean, std=norm.std))
    if fixed_range is not None:
        plain = {"scale": fixed_range / 255.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        specs = [replace(spec, **plain) for spec in specs]  # type: ignore[arg-type]
    distinct: dict[tuple[object, ...], PreprocessSpec] = {}
    for spec in specs:
        distinct.setdefault(_numbers(spec), spec)
    known = {_numbers(spec) for spec in specs[: len(published)]}
    return [Candidate(describe(spec), spec, key in known) for key, spec in distinct.items()]


def _numbers(spec: PreprocessSpec) -> tuple[object, ...]:
    """Key that is equal for nearly equal inputs, such as ImageNet's mean in 0..255 and in 0..1."""
    gain = np.round(spec.scale / np.asarray(spec.std) * 255, 1)
    shift = np.round(np.asarray(spec.mean) / np.asarray(spec.std), 1)
    geometry = (spec.resize, spec.anchor if spec.resize == "letterbox" else "", spec.pad_value)
    return (*geometry, spec.channel_order, *gain.tolist(), *shift.tolist())


def describe(spec: PreprocessSpec) -> str:
    """Geometry, channel order and number range for messages."""
    geometry = "stretched" if spec.resize == "stretch" else f"{spec.anchor} letterbox, pad {spec.pad_value}"
    plain = spec.mean == (0.0,) * 3 and spec.std == (1.0,) * 3
    span = f"0..{round(255 * spec.scale, 2):g}" if plain else "mean and std"
    return f"{geometry}, {spec.channel_order}, {span}"


@dataclass(frozen=True, slots=True)
class PreprocessSearch:
    """Scores preprocessings by the float model's certainty on pictures.

    Attributes:
        source: the model before its input is folded.
        decoder, families: decode its outputs.
        infer: opens the model; called once per thread.
    """

    source: FloatModel
    decoder: DecoderSpec
    families: Sequence[Decoder]
    infer: Infer

    def run(self, candidates: Sequence[Candidate], pictures: Sequence[U8]) -> SearchResult:
        """Score every candidate on up to 16 pictures and choose one, see `best_candidate`.

        Candidates below half of the best score on the first 4 pictures are not run on the others.

        Args:
            candidates: at least one.
            pictures: (H, W, 3) uint8 BGR each, at least one.

        Returns:
            The chosen preprocessing and all scores.
        """
        used = pictures[:MOST_PICTURES]
        first, rest = used[:_FIRST_PICTURES], used[_FIRST_PICTURES:]
        per_thread = threading.local()

        def score(candidate: Candidate, shown: Sequence[U8]) -> float:
            if not hasattr(per_thread, "run"):
                per_thread.run = self.infer(self.source)
            return self.certainty(per_thread.run, candidate.spec, shown)

        with ThreadPoolExecutor(_WORKERS) as pool:
            scores = list(pool.map(lambda candidate: score(candidate, first), candidates))
            hopeful = [i for i, value in enumerate(scores) if rest and value >= _HOPELESS * max(scores)]
            further = pool.map(lambda i: score(candidates[i], rest), hopeful)
            for index, more in zip(hopeful, further, strict=True):
                scores[index] = (scores[index] * len(first) + more * len(rest)) / len(used)
        best = best_candidate(scores, [candidate.published for candidate in candidates])
        table = tuple((c.label, s) for c, s in zip(candidates, scores, strict=True))
        return SearchResult(
            candidates[best].spec, table, _messages(table, best, len(used)), _warnings(table, best)
        )

    def certainty(self, run: Run, spec: PreprocessSpec, pictures: Sequence[U8]) -> float:
        """Mean of `mirror_consistency` over pictures; 0.0 when the outputs are not finite."""
        prepare = Preprocessor(spec)
        decode = DetectionDecoder(self.decoder, self.families)
        bytes_in = self.source.view.inputs[0].dtype == "uint8"

        def detect(pixels: U8) -> Detections:
            prepared = prepare.prepare(pixels)
            values = prepared.tensor if bytes_in else normalise_picture(prepared.tensor, spec)
            return decode.decode(run(values), prepared, score_threshold=_LOWEST_SCORE)

        try:
            return float(np.mean([mirror_consistency(detect, pixels) for pixels in pictures]))
        except DataError:  # NaN or infinity: the number range is wrong
            return 0.0


def mirror_consistency(detect: Callable[[U8], Detections], pixels: U8) -> float:
    """Sum of the 8 best scores, each times the overlap with the mirrored picture's boxes, divided by 8.

    The overlap is the IoU with a box of the same class at the mirrored place: with wrong input a network may be
    certain, but not of the same boxes. Overlap by chance, measured on shifted boxes, is subtracted. Saturated
    scores count as 0: the numbers overflow.

    Args:
        detect: runs the network on (H, W, 3) uint8 BGR pixels.
        pixels: one picture.

    Returns:
        0.0 to 1.0.
    """
    detections = detect(pixels)
    if not len(detections) or _saturated(detections):
        return 0.0
    mirrored = detect(np.ascontiguousarray(pixels[:, ::-1]))
    height, width = pixels.shape[:2]
    back = mirrored.boxes_xyxy_px[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    best = detections.boxes_xyxy_px[:_TOP_BOXES]
    overlap = _overlap(detections, best, mirrored.class_ids, back)
    chance = np.mean(
        [
            _overlap(detections, moved, detections.class_ids, detections.boxes_xyxy_px)
            for moved in (_moved(best, share, (width, height)) for share in _CHANCE_SHIFTS)
        ],
        axis=0,
    )
    return float(np.sum(detections.scores[:_TOP_BOXES] * np.maximum(overlap - chance, 0.0))) / _TOP_BOXES


def _overlap(detections: Detections, best: AnyArray, class_ids: AnyArray, others: AnyArray) -> AnyArray:
    """Largest IoU per box of ``best``, which have the classes of the best detections, with others of that class."""
    same = detections.class_ids[:_TOP_BOXES, None] == class_ids[None]
    overlap: AnyArray = np.where(same, iou_matrix(best, others), 0.0).max(axis=1, initial=0.0)
    return overlap


def _moved(boxes: AnyArray, share: tuple[float, float], size_px: tuple[int, int]) -> AnyArray:
    """Boxes shifted by a share of the picture's size, modulo the picture."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    step = (centres + np.multiply(share, size_px)) % size_px - centres
    return boxes + np.tile(step, (1, 2))


def _saturated(detections: Detections) -> bool:
    """Whether all of the best boxes have the highest score: sums far beyond those of training."""
    best = detections.scores[:_TOP_BOXES]
    return len(best) == _TOP_BOXES and float(best.min()) >= _SATURATED


def best_candidate(scores: Sequence[float], published: Sequence[bool]) -> int:
    """Index of the chosen candidate: the first published one within 10 % of the best published score.

    An unpublished one wins only when the published ones score less than two thirds of it: a wrong colour order or
    number range may score a little higher on few pictures.
    """
    known = [score if listed else -1.0 for score, listed in zip(scores, published, strict=True)]
    ranked = known if max(known) >= _CLEARLY_WORSE * max(scores) else list(scores)
    return next(i for i, score in enumerate(ranked) if score >= max(ranked) * (1 - _NEAR))


def _messages(table: Sequence[tuple[str, float]], best: int, pictures: int) -> tuple[str, ...]:
    ranked = sorted(table, key=lambda entry: -entry[1])
    tried = "; ".join(f"{label} {score:.3f}" for label, score in ranked)
    return (
        f"preprocessing: {table[best][0]} ({len(table)} tried on {pictures} pictures)",
        f"certainty per preprocessing: {tried}",
    )


def _warnings(table: Sequence[tuple[str, float]], best: int) -> tuple[str, ...]:
    label, score = table[best]
    if score == 0.0:
        return (
            f"no preprocessing gave a box on the sample pictures: {label} is assumed, as published; "
            "set it with --preprocess",
        )
    near = [f"{other} ({s:.3f})" for other, s in table if other != label and s >= score * (1 - _NEAR)]
    if not near:
        return ()
    return (
        f"preprocessing is uncertain: {'; '.join(near)} scored within {_NEAR:.0%} of {label} ({score:.3f}) or above; "
        "set it with --preprocess",
    )
