"""Which preprocessing a network was trained with: the one that makes it most certain on real pictures."""

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
# A sigmoid's answer to 13.8: two-stage networks say 0.9999 of each car in a queue, none says this of eight.
_SATURATED = 0.999999
# Where the best boxes are put to see what agrees by chance: shares of the picture's width and height.
_ELSEWHERE = ((0.25, 0.0), (0.5, 0.25), (0.75, 0.5), (0.375, 0.75))
# On 16 pictures two geometries or colour orders differ by as much from chance alone.
_NEAR = 0.10
_CLEARLY_WORSE = 2 / 3
_FIRST_LOOK = 4
_WORKERS = min(4, os.cpu_count() or 1)
_HOPELESS = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A preprocessing with words for it; ``published`` where the family is known to be trained with it."""

    label: str
    spec: PreprocessSpec
    published: bool = True


@dataclass(frozen=True, slots=True)
class Tried:
    """The preprocessing taken, with every candidate's certainty."""

    spec: PreprocessSpec
    scores: tuple[tuple[str, float], ...]
    messages: tuple[str, ...]
    warnings: tuple[str, ...]


def variants(published: Sequence[PreprocessSpec], fixed_range: float | None) -> list[Candidate]:
    """The published preprocessings, then RGB/BGR and the usual number ranges in the first one's geometry.

    Args:
        published: most likely first.
        fixed_range: 255.0 or 1.0 where the graph normalises by itself: then only geometry and order vary.
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
    """Equal for specs that give nearly the same input: imagenet's mean as bytes or as 0..1."""
    gain = np.round(spec.scale / np.asarray(spec.std) * 255, 1)
    shift = np.round(np.asarray(spec.mean) / np.asarray(spec.std), 1)
    geometry = (spec.resize, spec.anchor if spec.resize == "letterbox" else "", spec.pad_value)
    return (*geometry, spec.channel_order, *gain.tolist(), *shift.tolist())


def describe(spec: PreprocessSpec) -> str:
    """In words: geometry, channel order, number range."""
    geometry = "stretched" if spec.resize == "stretch" else f"{spec.anchor} letterbox, pad {spec.pad_value}"
    plain = spec.mean == (0.0,) * 3 and spec.std == (1.0,) * 3
    span = f"0..{round(255 * spec.scale, 2):g}" if plain else "mean and std"
    return f"{geometry}, {spec.channel_order}, {span}"


@dataclass(frozen=True, slots=True)
class Trial:
    """Runs the float model on pictures prepared in different ways."""

    source: FloatModel
    decoder: DecoderSpec
    families: Sequence[Decoder]
    infer: Infer

    def run(self, candidates: Sequence[Candidate], pictures: Sequence[U8]) -> Tried:
        """Score every candidate on up to 16 pictures and choose (see ``choice``).

        Those that are hopeless on the first few pictures are not run on the others.
        """
        chosen = pictures[:MOST_PICTURES]
        first, rest = chosen[:_FIRST_LOOK], chosen[_FIRST_LOOK:]
        opened = threading.local()

        def score(candidate: Candidate, shown: Sequence[U8]) -> float:
            if not hasattr(opened, "run"):
                opened.run = self.infer(self.source)
            return self.certainty(opened.run, candidate.spec, shown)

        with ThreadPoolExecutor(_WORKERS) as pool:
            scores = list(pool.map(lambda candidate: score(candidate, first), candidates))
            hopeful = [i for i, value in enumerate(scores) if rest and value >= _HOPELESS * max(scores)]
            further = pool.map(lambda i: score(candidates[i], rest), hopeful)
            for index, more in zip(hopeful, further, strict=True):
                scores[index] = (scores[index] * len(first) + more * len(rest)) / len(chosen)
        taken = choice(scores, [candidate.published for candidate in candidates])
        table = tuple((c.label, s) for c, s in zip(candidates, scores, strict=True))
        return Tried(
            candidates[taken].spec, table, _messages(table, taken, len(chosen)), _warnings(table, taken)
        )

    def certainty(self, run: Run, spec: PreprocessSpec, pictures: Sequence[U8]) -> float:
        """Mean over pictures of the sum of the 8 best scores >= 0.1, divided by 8.

        Each score counts as far as the same class is found at the mirrored place of the mirrored picture (IoU):
        a network fed wrongly may be certain, but not of the same boxes. Where it is certain beyond measure of all of
        them, its numbers have run over, and the picture counts nothing.
        """
        prepare = Preprocessor(spec)
        decode = DetectionDecoder(self.decoder, self.families)
        bytes_in = self.source.view.inputs[0].dtype == "uint8"

        def look(pixels: U8) -> Detections:
            given = prepare.prepare(pixels)
            values = given.tensor if bytes_in else normalise_picture(given.tensor, spec)
            return decode.decode(run(values), given, score_threshold=_LOWEST_SCORE)

        try:
            return float(np.mean([_agreed(look, pixels) for pixels in pictures]))
        except DataError:  # numbers ran over: fed quite wrongly
            return 0.0


def _agreed(look: Callable[[U8], Detections], pixels: U8) -> float:
    """What a picture and its mirror image agree on, in the 8 best scores, less what agrees by chance.

    Chance is what the same boxes agree on with all others once they are moved elsewhere: where boxes lie everywhere,
    any box meets another.
    """
    seen = look(pixels)
    if not len(seen) or _runs_over(seen):
        return 0.0
    mirrored = look(np.ascontiguousarray(pixels[:, ::-1]))
    height, width = pixels.shape[:2]
    back = mirrored.boxes_xyxy_px[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    best = seen.boxes_xyxy_px[:_TOP_BOXES]
    agreement = _overlap(seen, best, mirrored.class_ids, back)
    places = [_moved(best, share, (width, height)) for share in _ELSEWHERE]
    chance = np.mean([_overlap(seen, moved, seen.class_ids, seen.boxes_xyxy_px) for moved in places], axis=0)
    return float(np.sum(seen.scores[:_TOP_BOXES] * np.maximum(agreement - chance, 0.0))) / _TOP_BOXES


def _overlap(seen: Detections, best: AnyArray, class_ids: AnyArray, others: AnyArray) -> AnyArray:
    """Per box of ``best``, placed for the best of ``seen``, the largest IoU with one of the others of its class."""
    same = seen.class_ids[:_TOP_BOXES, None] == class_ids[None]
    overlap: AnyArray = np.where(same, iou_matrix(best, others), 0.0).max(axis=1, initial=0.0)
    return overlap


def _moved(boxes: AnyArray, share: tuple[float, float], size_px: tuple[int, int]) -> AnyArray:
    """Boxes moved by a share of the picture's size; a centre that leaves comes in again on the other side."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    step = (centres + np.multiply(share, size_px)) % size_px - centres
    return boxes + np.tile(step, (1, 2))


def _runs_over(seen: Detections) -> bool:
    """Whether all the best boxes are as certain as numbers get: sums far beyond what was trained, no certainty."""
    best = seen.scores[:_TOP_BOXES]
    return len(best) == _TOP_BOXES and float(best.min()) >= _SATURATED


def choice(scores: Sequence[float], published: Sequence[bool]) -> int:
    """The index to take: the most certain published preprocessing, the first of those within 10 % of it.

    Another one is taken only where the published ones reach less than two thirds of its certainty: a colour
    order or a number range a network was not trained with can look a little more certain on few pictures.
    """
    known = [score if told else -1.0 for score, told in zip(scores, published, strict=True)]
    ranked = known if max(known) >= _CLEARLY_WORSE * max(scores) else list(scores)
    return next(i for i, score in enumerate(ranked) if score >= max(ranked) * (1 - _NEAR))


def _messages(table: Sequence[tuple[str, float]], taken: int, pictures: int) -> tuple[str, ...]:
    ranked = sorted(table, key=lambda entry: -entry[1])
    tried = "; ".join(f"{label} {score:.3f}" for label, score in ranked)
    return (
        f"preprocessing: {table[taken][0]} ({len(table)} tried on {pictures} pictures)",
        f"certainty per preprocessing: {tried}",
    )


def _warnings(table: Sequence[tuple[str, float]], taken: int) -> tuple[str, ...]:
    label, score = table[taken]
    if score == 0.0:
        return (
            f"no preprocessing gave a box on the sample pictures: {label} is taken as published; "
            "give it with --preprocess",
        )
    near = [f"{other} ({s:.3f})" for other, s in table if other != label and s >= score * (1 - _NEAR)]
    if not near:
        return ()
    return (
        f"preprocessing is not certain: {'; '.join(near)} came within {_NEAR:.0%} of {label} ({score:.3f}) or above; "
        "give it with --preprocess where you know it",
    )
