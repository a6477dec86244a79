"""Match the ground truth of label files to a model's classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from avq.errors import DataError, RequestError, nearest
from avq.measure.label_formats import RawLabels, not_coco, read_labels
from avq.types import F32, I64
from avq.types.arrays import ArrayRecord


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage(ArrayRecord):
    """One picture of the label file with its ground truth.

    Attributes:
        image_id: id in the file.
        file_name: as in the label file, '/' separated.
        size_px: (width, height), or (0, 0) where the file has none.
        boxes_xyxy_px: (N, 4) float32, picture pixels; only categories of the model.
        categories: (N,) int64, index into ``Labels.categories``.
        ignore: (N,) bool: crowds and ignored boxes, which count neither as hit nor as miss.
    """

    image_id: int
    file_name: str
    size_px: tuple[int, int]
    boxes_xyxy_px: F32
    categories: I64
    ignore: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        self._freeze("boxes_xyxy_px", "categories", "ignore")


@dataclass(frozen=True)
class Labels:
    """Ground truth of a set of pictures, in categories of the model.

    Attributes:
        source: the label file.
        images: by image id.
        categories: names of the categories that are compared, in the file's order.
        class_to_category: model class id -> index into ``categories``; other classes are not scored.
        skipped: categories of the file without a model class.
        skipped_boxes: number of boxes in those categories.
        flat_boxes: number of boxes without area.
        remarks: what the reader of the file left out, one sentence per kind.
    """

    source: Path
    images: Mapping[int, LabelledImage]
    categories: tuple[str, ...]
    class_to_category: Mapping[int, int]
    skipped: tuple[str, ...] = ()
    skipped_boxes: int = 0
    flat_boxes: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[str, ...]:
        """Descriptions of skipped labels, one sentence each."""
        messages = list(self.remarks)
        if self.skipped:
            names = ", ".join(self.skipped)
            messages.append(
                f"labels not compared, the model has no such class: {names} ({self.skipped_boxes} boxes)"
            )
        if self.flat_boxes:
            messages.append(f"labels left out, boxes without area: {self.flat_boxes}")
        return tuple(messages)

    @cached_property
    def _by_base_name(self) -> dict[str, list[LabelledImage]]:
        table: dict[str, list[LabelledImage]] = {}
        for image in self.images.values():
            table.setdefault(PurePosixPath(image.file_name).name, []).append(image)
        return table

    def image_for(self, picture: Path) -> LabelledImage | None:
        """Find the labels of a picture file: by equal base name, then by the longest common end of the path.

        Returns:
            None when the picture is not labelled, or when two labelled pictures match equally well.
        """
        candidates = self._by_base_name.get(picture.name, [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        ranked = sorted(((_common_tail(picture, i.file_name), i) for i in candidates), key=lambda p: -p[0])
        return ranked[0][1] if ranked[0][0] > ranked[1][0] else None

    def image_with_boxes(self, picture: Path) -> LabelledImage | None:
        """Find the labels of a picture file; None where it has no box that counts."""
        image = self.image_for(picture)
        return None if image is None or image.ignore.all() else image

    def match(self, pictures: Iterable[Path]) -> dict[Path, int]:
        """Return picture file -> image id, for labelled pictures.

        Raises:
            DataError: no picture is labelled, so labels and pictures belong to different sets.
        """
        listed = list(pictures)
        matched = {path: image.image_id for path in listed if (image := self.image_for(path)) is not None}
        if not matched:
            example = next(iter(self.images.values())).file_name
            raise DataError(
                f"no picture has labels in {self.source}",
                seen=f"{len(listed)} pictures such as '{listed[0].name if listed else '-'}'; "
                f"labels for {len(self.images)} such as '{example}'",
                fix="use the label file of these pictures",
            )
        return matched


def load_labels(
    path: Path, *, class_map: Mapping[str, tuple[str, ...]], class_names: Sequence[str]
) -> Labels:
    """Read a label file and match its categories to ``class_names``.

    A category matches the classes that ``class_map`` gives for it, else the model class of the same name (case, '_',
    '-' and ' ' make no difference). A model class belongs to one category: one that ``class_map`` assigns elsewhere
    leaves its namesake unmatched. Where the model has no class names, YOLO labels match by class id. Unmatched
    categories are listed in ``skipped``. Boxes with ``iscrowd`` or ``ignore`` are kept and marked; boxes without
    area are dropped.

    Args:
        path: COCO JSON, a YOLO ``data.yaml`` or its folder, or Pascal VOC XML files.
        class_map: label category -> names of model classes.
        class_names: classes of the model by id.

    Raises:
        DataError: the file is missing, not JSON, lacks keys, or holds invalid entries.
        RequestError: ``class_map`` names an unknown category or class, or no category matches.
    """
    raw = read_labels(path)
    names = _category_names(raw, path)
    unnamed = all(name == f"class{index}" for index, name in enumerate(class_names))
    if raw.numbered and unnamed and not class_map and max(names) < len(class_names):
        members = {cid: [cid] for cid in names}
    else:
        members = _members(names, class_map, class_names)
    kept = [cid for cid in names if members.get(cid)]
    skipped = tuple(names[cid] for cid in names if not members.get(cid))
    if not kept:
        raise RequestError(
            f"no label category of {path} is a class of the model",
            seen=f"labels: {', '.join(skipped)}; model: {', '.join(class_names[:20])}",
            fix="map categories to classes: --map vehicle=car,bus,truck",
        )
    index = {cid: position for position, cid in enumerate(kept)}
    truth, skipped_boxes, flat_boxes = _truth(raw, path, index, names)
    return Labels(
        source=path,
        images=_images(raw, path, truth),
        categories=tuple(names[cid] for cid in kept),
        class_to_category={model: index[cid] for cid in kept for model in members[cid]},
        skipped=skipped,
        skipped_boxes=skipped_boxes,
        flat_boxes=flat_boxes,
        remarks=raw.remarks,
    )


def _normal(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _common_tail(picture: Path, file_name: str) -> int:
    pairs = zip(reversed(picture.parts), reversed(PurePosixPath(file_name).parts), strict=False)
    length = 0
    for part, other in pairs:
        if part != other:
            break
        length += 1
    return length


def _integer(row: dict[str, Any], key: str, where: str, path: Path) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise not_coco(path, f"{where} has {key}={value!r}, expected an integer")
    return value


def _category_names(raw: RawLabels, path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, row in enumerate(raw.categories):
        cid = _integer(row, "id", f"categories[{position}]", path)
        name = row.get("name")
        if not isinstance(name, str) or cid in names:
            raise not_coco(path, f"categories[{position}] has no name, or its id {cid} is used twice")
        names[cid] = name
    return names


def _members(
    names: Mapping[int, str], class_map: Mapping[str, tuple[str, ...]], class_names: Sequence[str]
) -> dict[int, list[int]]:
    """Return category id -> ids of its model classes."""
    ids_by_class = {_normal(name): index for index, name in reversed(list(enumerate(class_names)))}
    ids_by_category = {_normal(name): cid for cid, name in names.items()}
    members: dict[int, list[int]] = {}
    owner: dict[int, str] = {}
    for category, classes in class_map.items():
        cid = _known(category, ids_by_category, names.values(), "label category")
        for name in classes:
            model = _known(name, ids_by_class, class_names, "model class")
            if owner.setdefault(model, category) != category:
                raise RequestError(
                    f"the model class '{name}' is mapped to two label categories",
                    seen=f"{owner[model]} and {category}",
                    fix="name each class once in --map",
                )
            members.setdefault(cid, []).append(model)
    for cid, name in names.items():
        same = ids_by_class.get(_normal(name))
        if cid not in members and same is not None and same not in owner:
            members[cid] = [same]
            owner[same] = name
    return members


def _known(name: str, table: Mapping[str, int], valid: Iterable[str], kind: str) -> int:
    known = table.get(_normal(name))
    if known is None:
        raise RequestError(f"--map names an unknown {kind}", seen=name, fix=nearest(name, valid))
    return known


_Truth = dict[int, list[tuple[list[float], int, bool]]]


def _truth(
    raw: RawLabels, path: Path, index: Mapping[int, int], names: Mapping[int, str]
) -> tuple[_Truth, int, int]:
    """Return image id -> [(xyxy, category index, ignore)], and counts of skipped boxes and of boxes without area."""
    truth: _Truth = {}
    skipped = flat = 0
    for position, row in enumerate(raw.annotations):
        where = f"annotations[{position}]"
        cid = _integer(row, "category_id", where, path)
        if cid not in names:
            raise not_coco(path, f"{where} has category_id={cid}, which categories does not list")
        image_id = _integer(row, "image_id", where, path)
        if cid not in index:
            skipped += 1
            truth.setdefault(image_id, [])
            continue
        box = _xyxy(row.get("bbox"), where, path)
        ignore = bool(row.get("iscrowd", 0)) or bool(row.get("ignore", 0))
        entry = truth.setdefault(image_id, [])
        if box is None:
            flat += 1
        else:
            entry.append((box, index[cid], ignore))
    return truth, skipped, flat


def _xyxy(bbox: Any, where: str, path: Path) -> list[float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(v) for v in bbox):
        raise not_coco(path, f"{where} has bbox={bbox!r}, expected four finite numbers x, y, width, height")
    x, y, width, height = (float(v) for v in bbox)
    return [x, y, x + width, y + height] if width > 0 and height > 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _images(raw: RawLabels, path: Path, truth: _Truth) -> dict[int, LabelledImage]:
    images: dict[int, LabelledImage] = {}
    for position, row in enumerate(raw.images):
        image_id = _integer(row, "id", f"images[{position}]", path)
        name = row.get("file_name")
        if not isinstance(name, str) or not name or image_id in images:
            raise not_coco(path, f"images[{position}] has no file_name, or its id {image_id} is used twice")
        images[image_id] = _image(image_id, name.replace("\\", "/"), row, truth.get(image_id, []))
    stray = next((image_id for image_id in truth if image_id not in images), None)
    if stray is not None:
        raise not_coco(path, f"an annotation has image_id={stray}, which images does not list")
    if not images:
        raise not_coco(path, "'images' is empty")
    return images


def _image(
    image_id: int, name: str, row: dict[str, Any], boxes: list[tuple[list[float], int, bool]]
) -> LabelledImage:
    size = [value if _is_number(value) else 0 for value in (row.get("width", 0), row.get("height", 0))]
    return LabelledImage(
        image_id=image_id,
        file_name=name,
        size_px=(int(size[0]), int(size[1])),
        boxes_xyxy_px=np.array([b for b, _, _ in boxes], np.float32).reshape(-1, 4),
        categories=np.array([c for _, c, _ in boxes], np.int64),
        ignore=np.array([i for _, _, i in boxes], np.bool_),
    )
