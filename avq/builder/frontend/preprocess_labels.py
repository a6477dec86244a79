"""Evidence for a preprocessing from the user's labels, which decide where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.builder.frontend.preprocess_evidence import Detect, Evidence
from avq.builder.pictures.dataset import Item, Samples
from avq.measure.accuracy import evaluate
from avq.measure.labels import Labels
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
        image = self.labels.image_with_boxes(self.pictures.items[index].path)
        assert image is not None
        accuracy = evaluate(self.labels, {image.image_id: found})
        return Evidence(accuracy.map, int((~image.ignore).sum()), found)


def labelled_samples(labels: Labels, items: Sequence[Item]) -> LabelledSamples | None:
    """Return those of ``items`` that have a labelled box; None without any."""
    chosen = [item for item in items if labels.image_with_boxes(item.path)]
    return LabelledSamples(labels, Samples(chosen)) if chosen else None
