"""Divide the pictures of a build: on some the search compares plans, on others the bundle is judged.

The best of many plans looks better than it is on the pictures that chose it, so the verdict takes others wherever
enough boxes remain. Held-out pictures go to the verdict first: nothing was fitted to them. Before the gate says
"cannot tell", the verdict is widened to all pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.holdout import MAX_PICTURES, HoldoutBuilder, HoldoutSet, drawn_holdout
from avq.builder.labelled import labels_of
from avq.builder.pictures.dataset import Item, Pictures
from avq.builder.request import Request
from avq.decoders import DetectionDecoder, builtin_decoders
from avq.measure.fidelity import FIRM_SCORE
from avq.preprocess import Preprocessor
from avq.progress import Reporter
from avq.types import Detections, SessionOptions

#: Independent boxes, none of them lost, that suffice for a yes at the default limit of 1 %.
ENOUGH = 149
# Boxes for the verdict and for the search, in the order in which they are filled.
_VERDICT, _SEARCH = (160, 400), (150, 300)
#: The verdict gets every second held-out picture from here on, the search the others.
_MANY_HELD_OUT = 64
_MIN_PICTURES = 16


@dataclass(frozen=True)
class VerdictSet:
    """Pictures with the float model's boxes.

    Attributes:
        items: picture files.
        float_detections: the float model's boxes with score >= SCORE_FLOOR, per picture.
        shared: the search compared plans on some of them.
    """

    items: tuple[Item, ...]
    float_detections: tuple[Detections, ...]
    shared: bool = False

    @property
    def firm_boxes(self) -> int:
        return sum(len(boxes.above(FIRM_SCORE)) for boxes in self.float_detections)

    def with_more(
        self, items: Sequence[Item], boxes: Sequence[Detections], *, shared: bool = False
    ) -> VerdictSet:
        return VerdictSet((*self.items, *items), (*self.float_detections, *boxes), self.shared or shared)


@dataclass
class VerdictPictures:
    """Pictures of the verdict, in stages: each holds all before it, the last one all of the data.

    Attributes:
        own: pictures of the verdict alone; empty where too few boxes are left beside the search.
        spare: pictures on which the float model has not run yet.
        search: pictures on which the search compares plans.
        detect: runs the float model over pictures.
    """

    own: VerdictSet
    spare: tuple[Item, ...]
    search: HoldoutSet
    detect: Callable[[Sequence[Item]], tuple[Detections, ...]]

    def stages(self, *, searched: bool) -> Iterator[VerdictSet]:
        """Yield growing sets. Without a search every picture is as good as another, and known ones come first."""
        if not searched:
            known = self._with_search(self.own, shared=False)
            yield known
            if self.spare:
                yield self._with_spare(known)
            return
        if self.own.firm_boxes >= ENOUGH:
            yield self.own
        if self.spare:
            yield self._with_spare(self.own)
        yield self._with_search(self._with_spare(self.own), shared=True)

    def _with_search(self, pictures: VerdictSet, *, shared: bool) -> VerdictSet:
        return pictures.with_more(self.search.items, self.search.float_detections or (), shared=shared)

    def _with_spare(self, pictures: VerdictSet) -> VerdictSet:
        return pictures.with_more(self.spare, self._spare_boxes)

    @cached_property
    def _spare_boxes(self) -> tuple[Detections, ...]:
        return self.detect(self.spare) if self.spare else ()


def divide_pictures(
    request: Request, analysis: ModelAnalysis, pictures: Pictures, report: Reporter
) -> tuple[HoldoutSet, VerdictPictures | None]:
    """Run the float model over pictures until search and verdict have boxes enough.

    Returns:
        The pictures of the search, and those of the verdict; None without a decoder or without pictures.

    Raises:
        ModelError: the float model outputs NaN or Inf.
    """
    if not pictures.held_out.items:
        return drawn_holdout(request, analysis), None
    with _float_model(request, analysis) as new_builder:
        if analysis.decoder.family == "none":
            return _filled(new_builder(), pictures.held_out.items[:MAX_PICTURES], report).build(), None
        usable = _usable(request, analysis, pictures)
        total = sum(map(len, usable))
        division = _Division(new_builder(), new_builder(), *usable)
        for _ in report.track(division.fill(), "float outputs", min(total, 2 * MAX_PICTURES)):
            pass
    search, own = division.sets()

    def detect(items: Sequence[Item]) -> tuple[Detections, ...]:
        report.message(f"the verdict is not certain: {len(items)} more pictures join")
        with _float_model(request, analysis) as builder:
            float_model = builder()
            return tuple(float_model.detect(item) for item in report.track(items, "float boxes", len(items)))

    _report_few(own, search, report)
    return search, VerdictPictures(own, division.spare, search, detect)


@contextmanager
def _float_model(request: Request, analysis: ModelAnalysis) -> Iterator[Callable[[], HoldoutBuilder]]:
    """Open the float model in the unoptimised reference; yield a function that begins a set of pictures."""
    families = (*builtin_decoders(), *request.families)
    decode = DetectionDecoder(analysis.decoder, families) if analysis.decoder.family != "none" else None
    options = SessionOptions(threads=request.probe_threads, optimise=False)
    session = request.reference.open(analysis.model.proto.SerializeToString(), options)
    try:
        yield lambda: HoldoutBuilder(Preprocessor(analysis.spec), session, decode)
    finally:
        session.close()


def _filled(builder: HoldoutBuilder, items: Sequence[Item], report: Reporter) -> HoldoutBuilder:
    for item in report.track(items, "float outputs", len(items)):
        if not builder.full:
            builder.add(item)
    return builder


def _usable(
    request: Request, analysis: ModelAnalysis, pictures: Pictures
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return held-out and calibration pictures, each once; with labels, the labelled ones if there are any."""
    known = {item.sha256 for item in pictures.held_out.items}
    others = tuple(item for item in pictures.calibration.items if item.sha256 not in known)
    both = (pictures.held_out.items, others)
    labels = labels_of(request, analysis.class_names)
    if labels is None:
        return both
    labelled = tuple(tuple(item for item in part if labels.image_with_boxes(item.path)) for part in both)
    return (labelled[0], labelled[1]) if any(labelled) else both


class _Division:
    """Pictures on their way to the verdict and to the search, in turns."""

    def __init__(
        self,
        verdict: HoldoutBuilder,
        search: HoldoutBuilder,
        held_out: Sequence[Item],
        others: Sequence[Item],
    ) -> None:
        many = len(held_out) >= _MANY_HELD_OUT
        self._for_verdict = deque(held_out[::2] if many else held_out)
        self._for_search = deque(held_out[1::2] if many else ())
        self._others = deque(others)
        self._verdict, self._search = verdict, search

    def fill(self) -> Iterator[None]:
        """Add one picture per step, until both have boxes enough or no picture is left."""
        for level, pictures in enumerate((0, _MIN_PICTURES)):
            yield from self._fill(self._verdict, _VERDICT[level], pictures, self._next_of_verdict)
            yield from self._fill(self._search, _SEARCH[level], pictures, self._next_of_search)

    @property
    def spare(self) -> tuple[Item, ...]:
        return (*self._for_verdict, *self._for_search, *self._others)

    def sets(self) -> tuple[HoldoutSet, VerdictSet]:
        """Return the sets of the search and of the verdict; all for the search where too few boxes are left."""
        search, verdict = self._search.build(), self._verdict.build()
        own = VerdictSet(verdict.items, verdict.float_detections or ())
        if not search.items or (own.firm_boxes < ENOUGH and not self.spare):
            return verdict.joined(search), VerdictSet((), ())
        return search, own

    def _fill(
        self, builder: HoldoutBuilder, boxes: int, pictures: int, take: Callable[[], Item | None]
    ) -> Iterator[None]:
        while not builder.full and (builder.confident_boxes < boxes or len(builder) < pictures):
            item = take()
            if item is None:
                return
            builder.add(item)
            yield

    def _next_of_verdict(self) -> Item | None:
        if self._for_verdict:
            return self._for_verdict.popleft()
        return self._others.pop() if self._others else None

    def _next_of_search(self) -> Item | None:
        queue = self._for_search or self._others
        return queue.popleft() if queue else None


def _report_few(own: VerdictSet, search: HoldoutSet, report: Reporter) -> None:
    if own.items:
        return
    boxes = sum(len(found.above(FIRM_SCORE)) for found in search.float_detections or ())
    if boxes < ENOUGH:
        report.message(
            f"{boxes} boxes with score >= {FIRM_SCORE:g} in all pictures: {ENOUGH} are needed to accept"
        )
