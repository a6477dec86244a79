"""Evidence for a preprocessing from the user's labels, which decide where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.builder.frontend.preprocess_evidence import Detect, Evidence
from avq.builder.pictures.dataset import Item, Samples
from avq.measure.accuracy import evaluate
from avq.measure.labels import LabelledImage, Labels
from avq.types import U8


@dataclass(frozen=True, slots=True)
class LabelledSamples:
    """Labelled pictures to try preprocessings on.

    Attributes:
        labels: in the model's classes.
        pictures: all of them labelled, each with at least one box.
    """

    labels: Labels
    pictures: Samples

    def judge(self, detect: Detect, index: int, pixels: U8) -> Evidence:
        """Return mAP50-95 of one picture as evidence, with its number of labelled boxes."""
        found = detect(pixels)
        image = _with_boxes(self.labels, self.pictures.items[index])
        assert image is not None
        accuracy = evaluate(self.labels, {image.image_id: found})
        return Evidence(accuracy.map, int((~image.ignore).sum()), found)


def labelled_samples(labels: Labels, items: Sequence[Item]) -> LabelledSamples | None:
    """Return those of ``items`` that have a labelled box; None without any."""
    chosen = [item for item in items if _with_boxes(labels, item) is not None]
    return LabelledSamples(labels, Samples(chosen)) if chosen else None


def _with_boxes(labels: Labels, item: Item) -> LabelledImage | None:
    image = labels.image_for(item.path)
    return image if image is not None and bool((~image.ignore).any()) else None
