"""Search for the preprocessing that a network was trained with, by its boxes on pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from avq.builder.frontend.fold_input import normalise_picture
from avq.builder.frontend.preprocess_candidates import Candidate, geometries
from avq.builder.frontend.preprocess_choice import Choice, Scored, choose, table, undecided_error
from avq.builder.frontend.preprocess_evidence import LOWEST_SCORE, Detect, Evidence, picture_evidence
from avq.builder.graph.model import FloatModel
from avq.decoders import DetectionDecoder
from avq.errors import DataError
from avq.hookspecs import Decoder
from avq.preprocess import Preprocessor
from avq.types import U8, AnyArray, DecoderSpec, Detections, PreprocessSpec, RawOutputs

Run = Callable[[AnyArray], RawOutputs]
Infer = Callable[[FloatModel], Run]
#: (detect, index of the picture, its pixels) -> evidence.
Judge = Callable[[Detect, int, U8], Evidence]

# Passes: number of pictures so far, and the share of the best evidence that a candidate needs for the next pass.
_PASSES = ((4, 0.4), (8, 0.6), (16, 0.0), (32, 0.0))
#: Passes after which the choice may end the search.
_FEWEST_PICTURES = 16
_MOST_PICTURES = 32
# Below so many objects all candidates stay.
_FEWEST_OBJECTS = 6
_WORKERS = min(4, os.cpu_count() or 1)
_NOT_FINITE = Evidence(-2.0, 0, Detections.none("", 0, 0))


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The chosen preprocessing, with a table of all candidates in the messages."""

    spec: PreprocessSpec
    messages: tuple[str, ...]


def by_views(detect: Detect, index: int, pixels: U8) -> Evidence:
    """Judge without labels, see `picture_evidence`."""
    return picture_evidence(detect, pixels)


@dataclass(frozen=True, slots=True)
class PreprocessSearch:
    """Judges preprocessings by the float model's boxes on pictures.

    Attributes:
        source: the model before its input is folded.
        decoder, families: decode its outputs.
        infer: opens the model; called once per thread.
        judges: evidence of one picture, and its unit for messages; the next one judges what this leaves open.
    """

    source: FloatModel
    decoder: DecoderSpec
    families: Sequence[Decoder]
    infer: Infer
    judges: tuple[tuple[Judge, str], ...] = ((by_views, "evidence"),)

    def run(self, candidates: Sequence[Candidate], pictures: Sequence[U8]) -> SearchResult:
        """Judge the candidates and choose one, see `choose`.

        All are run on 4 pictures, those with a chance on 8, 16, and on 32 where these do not decide. A network that
        is not used as its family is published may have another geometry, too: then all geometries are tried.

        Args:
            candidates: at least one.
            pictures: (H, W, 3) uint8 BGR each, at least one; read one at a time.

        Returns:
            The chosen preprocessing and all evidence.

        Raises:
            RequestError: the pictures do not decide; lists the candidates.
        """
        lines: list[str] = []
        left = list(candidates)
        for judge, unit in self.judges:
            with _Workers(self, judge) as workers:
                scored, choice = self._decided(workers, left, pictures)
                if not choice.undecided and not scored[choice.chosen].candidate.published:
                    shapes = geometries(scored[choice.chosen].candidate)
                    scored, choice = self._decided(workers, shapes, pictures, most=_FEWEST_PICTURES)
            lines += table(scored, choice, unit)
            if not choice.undecided:
                break
            left = [scored[i].candidate for i in sorted(choice.rivals)]
        if choice.undecided:
            raise undecided_error(scored, choice)
        chosen = scored[choice.chosen].candidate
        tried = max(len(one.evidence) for one in scored)
        head = f"preprocessing: {chosen.label} ({choice.rule}; {len(candidates)} tried on {tried} pictures)"
        return SearchResult(chosen.spec, (head, *lines))

    def _decided(
        self,
        workers: _Workers,
        candidates: Sequence[Candidate],
        pictures: Sequence[U8],
        most: int = _MOST_PICTURES,
    ) -> tuple[list[Scored], Choice]:
        most = min(most, len(pictures))
        scored = [Scored(candidate, ()) for candidate in candidates]
        likely, count = list(range(len(scored))), 0
        for pictures_so_far, share in _PASSES:
            target = min(pictures_so_far, most)
            extended = workers.extend([scored[i] for i in likely], pictures, count, target)
            for i, one in zip(likely, extended, strict=True):
                scored[i] = one
            count = target
            if count >= min(_FEWEST_PICTURES, most):
                choice = choose(scored)
                if not choice.undecided or count == most:
                    break
            likely = _with_a_chance(scored, likely, share)
        return scored, choice


def _with_a_chance(scored: Sequence[Scored], likely: Sequence[int], share: float) -> list[int]:
    """Those of ``likely`` with that share of the best evidence; all that are not below 0 while objects are few."""
    best = max((scored[i] for i in likely), key=lambda one: one.mean)
    few = sum(evidence.objects for evidence in best.evidence) < _FEWEST_OBJECTS
    lowest = min(0.0, best.mean) if few or best.mean <= 0 else share * best.mean
    return [i for i in likely if scored[i].mean >= lowest]


class _Workers:
    """Threads with a session each; one picture is read and judged for all candidates by one of them."""

    def __init__(self, search: PreprocessSearch, judge: Judge) -> None:
        self._search = search
        self._judge = judge
        self._pool = ThreadPoolExecutor(_WORKERS)
        self._per_thread = threading.local()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def extend(self, scored: Sequence[Scored], pictures: Sequence[U8], start: int, end: int) -> list[Scored]:
        """Return the same candidates with the evidence of pictures ``start`` to ``end``, without the last one."""
        candidates = [one.candidate for one in scored]

        def judge(index: int) -> list[Evidence]:
            pixels = pictures[index]
            return [self._evidence(candidate.spec, index, pixels) for candidate in candidates]

        by_picture = list(self._pool.map(judge, range(start, end)))
        return [
            replace(one, evidence=(*one.evidence, *(row[i] for row in by_picture)))
            for i, one in enumerate(scored)
        ]

    def _evidence(self, spec: PreprocessSpec, index: int, pixels: U8) -> Evidence:
        try:
            return self._judge(self._detector(spec), index, pixels)
        except DataError:  # NaN or infinity: the number range is wrong
            return _NOT_FINITE

    def _detector(self, spec: PreprocessSpec) -> Detect:
        search = self._search
        if not hasattr(self._per_thread, "run"):
            self._per_thread.run = search.infer(search.source)
        run: Run = self._per_thread.run
        prepare = Preprocessor(spec)
        decode = DetectionDecoder(search.decoder, search.families)
        bytes_in = search.source.view.inputs[0].dtype == "uint8"

        def detect(pixels: U8) -> Detections:
            prepared = prepare.prepare(pixels)
            values = prepared.tensor if bytes_in else normalise_picture(prepared.tensor, spec)
            return decode.decode(run(values), prepared, score_threshold=LOWEST_SCORE)

        return detect
