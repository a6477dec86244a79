"""Accuracy against the user's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from avq.builder.holdout import HoldoutSet
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.request import Request
from avq.measure.accuracy import evaluate, relative_loss
from avq.measure.labels import Labels, load_labels
from avq.types import Accuracy, Detections, MapLoss

#: Pictures whose size is checked: labels of another export are wrong on all of them.
_SIZES_READ = 8


def labels_of(request: Request, class_names: Sequence[str]) -> Labels | None:
    """Load the recipe's labels in the model's classes; None without any."""
    recipe = request.recipe
    if recipe.labels is None:
        return None
    return load_labels(recipe.labels, class_map=recipe.class_map, class_names=class_names)


def remarks(labels: Labels, items: Sequence[Item]) -> tuple[str, ...]:
    """Return warnings about these labels, one sentence each."""
    labelled = [(item, image) for item in items if (image := labels.image_for(item.path)) is not None]
    read = [(item, image) for item, image in labelled if all(image.size_px)][:_SIZES_READ]
    odd = []
    for item, image in read:
        height_px, width_px = read_picture(item).shape[:2]
        if (width_px, height_px) != image.size_px:
            labelled_px = "x".join(map(str, image.size_px))
            odd.append(f"{item.path.name} is {width_px}x{height_px}, labelled as {labelled_px}")
    if not odd:
        return labels.messages
    share = f"{len(odd)} of {len(read)} pictures checked"
    return (
        *labels.messages,
        f"labels of pictures of another size ({share}): {odd[0]}; boxes are used unchanged",
    )


def accuracy(
    labels: Labels | None, paths: Sequence[Path], detections: Sequence[Detections]
) -> Accuracy | None:
    """Compute mAP over the labelled ones of the pictures ``paths``; None without labels."""
    return None if labels is None else evaluate(labels, _by_image(labels, paths, detections))


def map_loss(
    labels: Labels | None,
    paths: Sequence[Path],
    reference: Sequence[Detections],
    served: Sequence[Detections],
    *,
    missed: float,
) -> MapLoss | None:
    """Compute the relative loss of mAP of ``served`` with its limits; None without labels."""
    if labels is None:
        return None
    before, after = (_by_image(labels, paths, run) for run in (reference, served))
    return relative_loss(labels, before, after, missed=missed)


def _by_image(
    labels: Labels, paths: Sequence[Path], detections: Sequence[Detections]
) -> Mapping[int, Detections]:
    """Return image id -> detections of the labelled pictures."""
    image_ids = labels.match(paths)
    return {
        image_ids[path]: boxes for path, boxes in zip(paths, detections, strict=True) if path in image_ids
    }


def map_drop(
    request: Request, class_names: Sequence[str], holdout: HoldoutSet
) -> Callable[[Sequence[Detections]], float] | None:
    """Return a function from detections to the loss of mAP, in percent of the float model's mAP.

    The function takes the detections per picture of ``holdout``, from a low score (0.01) on.

    Returns:
        None without labels, or without a labelled object that the float model detects.
    """
    if request.recipe.labels is None or holdout.float_detections is None:
        return None
    labels = labels_of(request, class_names)
    reference = accuracy(labels, holdout.paths, holdout.float_detections)
    if reference is None or reference.map <= 0.0:
        return None
    of_float = reference.map

    def drop_percent(detections: Sequence[Detections]) -> float:
        served = accuracy(labels, holdout.paths, detections)
        return 0.0 if served is None else 100.0 * (of_float - served.map) / of_float

    return drop_percent
