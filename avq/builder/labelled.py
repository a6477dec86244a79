"""Plans and engines against labels, where the user gave some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from avq.builder.holdout import HoldoutSet
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.request import Request
from avq.errors import RefusedError
from avq.measure.accuracy import evaluate
from avq.measure.labels import Labels, load_labels
from avq.types import Accuracy, Detections

#: Pictures whose size is looked at: labels of another export are wrong on all of them.
_SIZES_READ = 8


def labels_of(request: Request, class_names: Sequence[str]) -> Labels | None:
    """The recipe's labels in the model's classes; None without any."""
    recipe = request.recipe
    if recipe.labels is None:
        return None
    return load_labels(recipe.labels, class_map=recipe.class_map, class_names=class_names)


def check_labels(request: Request, class_names: Sequence[str], holdout: HoldoutSet) -> None:
    """Refuse labels that can tell nothing before time is spent on a search; undecoded heads leave them aside.

    Raises:
        RequestError, DataError: as ``load_labels`` and ``Labels.match`` do.
        RefusedError: the float model finds nothing of what is labelled, and a gate was asked for.
    """
    labels, of_float = labels_of(request, class_names), holdout.float_detections
    if labels is None or of_float is None:
        return
    labels.match(holdout.paths)
    reference = accuracy(labels, holdout, of_float)
    if request.recipe.gate and reference is not None and reference.map <= 0.0:
        raise RefusedError(
            "the float model finds nothing that is labelled: no loss can be told from it",
            seen=f"mAP 0 on {reference.images} pictures; labelled: {', '.join(labels.categories[:20])}",
            fix="check --map, --preprocess and that labels and pictures belong together; without --labels the boxes "
            "of the float model are compared",
        )


def remarks(labels: Labels, items: Sequence[Item]) -> tuple[str, ...]:
    """What to know before numbers from these labels are trusted, one sentence each."""
    labelled = [(item, image) for item in items if (image := labels.image_for(item.path)) is not None]
    read = [(item, image) for item, image in labelled if all(image.size_px)][:_SIZES_READ]
    odd = []
    for item, image in read:
        height_px, width_px = read_picture(item).shape[:2]
        if (width_px, height_px) != image.size_px:
            said = "x".join(map(str, image.size_px))
            odd.append(f"{item.path.name} is {width_px}x{height_px}, labelled as {said}")
    if not odd:
        return labels.messages
    share = f"{len(odd)} of {len(read)} pictures looked at"
    return (
        *labels.messages,
        f"labels of pictures of another size ({share}): {odd[0]}; boxes are taken as they stand",
    )


def accuracy(labels: Labels | None, holdout: HoldoutSet, found: Sequence[Detections]) -> Accuracy | None:
    """mAP over the pictures of ``holdout`` that are labelled."""
    if labels is None:
        return None
    image_ids = labels.match(holdout.paths)
    by_image: Mapping[int, Detections] = {
        image_ids[path]: detections
        for path, detections in zip(holdout.paths, found, strict=True)
        if path in image_ids
    }
    return evaluate(labels, by_image)


def map_drop(
    request: Request, class_names: Sequence[str], holdout: HoldoutSet
) -> Callable[[Sequence[Detections]], float] | None:
    """detections -> loss of mAP in percent of the float model's; None without labels or boxes to score.

    Detections are given per picture of ``holdout``, from a low score (0.01) on.
    """
    if request.recipe.labels is None or holdout.float_detections is None:
        return None
    labels = labels_of(request, class_names)
    reference = accuracy(labels, holdout, holdout.float_detections)
    if reference is None or reference.map <= 0.0:
        return None
    of_float = reference.map

    def drop_percent(found: Sequence[Detections]) -> float:
        served = accuracy(labels, holdout, found)
        return 0.0 if served is None else 100.0 * (of_float - served.map) / of_float

    return drop_percent
