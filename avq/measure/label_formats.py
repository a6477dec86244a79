"""Read label files of several formats as one: COCO JSON, YOLO folders with data.yaml, Pascal VOC XML.

Every reader returns the three lists of a COCO detection file, and one sentence per kind of entry that it left out.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from avq.errors import DataError, MachineError
from avq.picture_files import read_picture_file
from avq.sources.files import SUFFIXES

#: Files that hold one class name per line, in folders without data.yaml.
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt")
_SPLITS = ("train", "val", "valid", "test", "minival")
_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class RawLabels:
    """Labels as the lists of a COCO detection file.

    Attributes:
        images: rows with id, file_name, width, height in pixels (0 where unknown).
        annotations: rows with image_id, category_id, bbox (x, y, width, height in pixels), iscrowd.
        categories: rows with id, name.
        remarks: entries that were left out or completed, one sentence per kind.
        numbered: category ids are class ids of the model that was trained on these labels.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    remarks: tuple[str, ...] = ()
    numbered: bool = False


def read_labels(path: Path) -> RawLabels:
    """Read COCO JSON, a YOLO ``data.yaml`` or folder, or a folder or file of Pascal VOC XML.

    Raises:
        DataError: the path is missing, of no known format, damaged, or without a usable label.
        MachineError: ``data.yaml`` is given and PyYAML is not installed.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yolo(path.parent, _yaml(path), path)
    if path.suffix.lower() == ".xml":
        return _read_voc([path], path)
    return _read_coco(path)


def _read_folder(folder: Path) -> RawLabels:
    """Choose the format by the files in the folder."""
    described = [p for p in sorted(folder.glob("*.y*ml")) if "names" in _yaml(p)]
    if described:
        return _read_yolo(folder, _yaml(described[0]), described[0])
    xml_files = sorted(p for p in folder.rglob("*.xml") if p.is_file())
    if xml_files:
        return _read_voc(xml_files, folder)
    names = next((folder / name for name in _NAME_FILES if (folder / name).is_file()), None)
    if names is None and (folder / "labels").is_dir():
        names = next((n for name in _NAME_FILES if (n := folder / "labels" / name).is_file()), None)
    if names is not None:
        listed = [line.strip() for line in _text(names).splitlines() if line.strip()]
        return _read_yolo(folder, {"names": listed, "train": "."}, folder)
    raise DataError(
        f"the folder {folder} has no labels of a known format",
        seen="no data.yaml with names, no classes.txt, no *.xml",
        fix="give a COCO JSON file, a YOLO data.yaml or its folder, or a folder of Pascal VOC XML files",
    )


# COCO


def _read_coco(path: Path) -> RawLabels:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"the labels {path} cannot be read", seen=os.strerror(error.errno or 0), fix="check the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise not_coco(path, f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise not_coco(path, f"a JSON {type(raw).__name__} at the top")
    for key in ("images", "annotations", "categories"):
        if not isinstance(raw.get(key), list) or not all(isinstance(row, dict) for row in raw[key]):
            raise not_coco(path, f"'{key}' is missing or not a list of objects")
    outlined = [row for row in raw["annotations"] if "bbox" not in row]
    for row in outlined:
        box = _outline_box(row.get("segmentation"))
        if box is not None:
            row["bbox"] = box
    filled = sum("bbox" in row for row in outlined)
    remarks = (f"labels with an outline and no box: {filled}; the box around the outline is used",)
    return RawLabels(raw["images"], raw["annotations"], raw["categories"], remarks if filled else ())


def not_coco(path: Path, seen: str) -> DataError:
    """Return the error for a file that is no COCO detection file."""
    return DataError(
        f"{path} is not a COCO detection file",
        seen=seen,
        fix="use a COCO file with images, annotations and categories, a YOLO data.yaml, or Pascal VOC XML",
    )


def _outline_box(outline: Any) -> list[float] | None:
    """Return the box around polygons, as x, y, width, height; None for other outlines."""
    if not isinstance(outline, list) or not outline or not all(isinstance(part, list) for part in outline):
        return None
    values = [value for part in outline for value in part]
    if len(values) < 6 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        return None
    xs, ys = values[0::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


# What the YOLO and VOC readers share


@dataclass
class _Collected:
    """Rows under construction, and counts of what was left out with one example each."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    omitted: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def omit(self, why: str, example: str) -> None:
        self.omitted[why] += 1
        self.examples.setdefault(why, example)

    def add_image(self, name: str, size_px: tuple[int, int]) -> int:
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "width": size_px[0], "height": size_px[1]})
        return image_id

    def add_box(
        self, image_id: int, category_id: int, xyxy_px: Sequence[float], ignore: bool = False
    ) -> None:
        x0, y0, x1, y1 = xyxy_px
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(ignore),
            }
        )

    def labels(self, names: Mapping[int, str], *, numbered: bool = False) -> RawLabels:
        remarks = tuple(
            f"labels left out: {count} {why}, such as {self.examples[why]}"
            for why, count in self.omitted.items()
        )
        categories = [{"id": category_id, "name": name} for category_id, name in names.items()]
        return RawLabels(self.images, self.annotations, categories, remarks, numbered)


def _text(path: Path) -> str:
    """Read a text file of labels.

    Raises:
        DataError: missing, not readable, or larger than any label file.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise DataError(
                f"{path} is too large for a label file",
                seen=f"{size >> 20} MiB, limit {_LARGEST_FILE >> 20} MiB",
                fix="check the path",
            )
        return path.read_text("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(
            f"the labels {path} cannot be read", seen=os.strerror(error.errno or 0), fix="check the path"
        ) from None


def _sizes_px(pictures: Sequence[Path]) -> list[tuple[int, int]]:
    """Return (width, height) of each picture as decoded, rotated as its EXIF says; (0, 0) where it cannot be read."""

    def size_px(path: Path) -> tuple[int, int]:
        try:
            height_px, width_px = read_picture_file(path).shape[:2]
        except ValueError:
            return (0, 0)
        return width_px, height_px

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(size_px, pictures))


# YOLO


def _yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise MachineError(
            f"{path} needs a YAML reader", seen="PyYAML is not installed", fix='pip install "avq[build]"'
        ) from None
    try:
        content = yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(
            f"{path} is not valid YAML", seen=str(error).replace("\n", " "), fix="correct the file"
        ) from None
    return content if isinstance(content, dict) else {}


def _class_names(described: Mapping[str, Any], source: Path) -> dict[int, str]:
    names = described.get("names")
    rows: Iterable[tuple[Any, Any]] = ()
    if isinstance(names, list):
        rows = enumerate(names)
    elif isinstance(names, dict):
        rows = names.items()
    try:
        table = {int(key): str(name) for key, name in rows}
    except (TypeError, ValueError):
        table = {}
    if not table:
        raise DataError(
            f"{source} has no class names",
            seen=f"names: {names!r}",
            fix="add names: a list, or a mapping from class id to name",
        )
    return table


def _read_yolo(folder: Path, described: Mapping[str, Any], source: Path) -> RawLabels:
    """Read every split of a YOLO data set; a picture without a label file is a picture without objects."""
    names = _class_names(described, source)
    pictures = _yolo_pictures(folder, described)
    if not pictures:
        splits = {key: described[key] for key in _SPLITS if key in described}
        raise DataError(
            f"{source} leads to no picture", seen=f"splits: {splits}", fix="correct path, train, val or test"
        )
    collected = _Collected()
    files = [(picture, _yolo_label_file(picture)) for picture in pictures]
    if not any(label.is_file() for _, label in files):
        raise DataError(
            f"{source} leads to {len(files)} pictures without label files",
            seen=f"no file such as {files[0][1]}",
            fix="keep the labels beside the pictures, or in 'labels' where the pictures are in 'images'",
        )
    rows = [_yolo_rows(label, names, "kpt_shape" in described, collected) for _, label in files]
    sizes = iter(_sizes_px([picture for (picture, _), found in zip(files, rows, strict=True) if found]))
    for (picture, _), found in zip(files, rows, strict=True):
        size_px = next(sizes) if found else (0, 0)
        if found and size_px == (0, 0):
            collected.omit("files of pictures that cannot be read", str(picture))
            continue
        image_id = collected.add_image(picture.as_posix(), size_px)
        width_px, height_px = size_px
        for class_id, (x0, y0, x1, y1) in found:
            box = (x0 * width_px, y0 * height_px, x1 * width_px, y1 * height_px)
            collected.add_box(image_id, class_id, box)
    return collected.labels(names, numbered=True)


def _yolo_pictures(folder: Path, described: Mapping[str, Any]) -> list[Path]:
    """Return the pictures of all splits: folders, lists of files, or lists of either."""
    root = described.get("path")
    roots = [folder] if root is None else [folder / str(root), folder / Path(str(root)).name, folder]
    found: dict[Path, None] = {}
    for key in _SPLITS:
        entries = described.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and entry:
                found.update(dict.fromkeys(_split_pictures(entry, roots)))
    return list(found)


def _split_pictures(entry: str, roots: Sequence[Path]) -> Iterator[Path]:
    # Some exporters write "../train/images" for a folder that stands beside data.yaml.
    inside = Path(*[part for part in Path(entry).parts if part != ".."])
    candidates = [root / where for root in roots for where in (Path(entry), inside)]
    place = next((candidate for candidate in candidates if candidate.exists()), None)
    if place is None:
        return
    if place.is_file() and place.suffix.lower() == ".txt":
        for line in _text(place).splitlines():
            if line.strip():
                listed = Path(line.strip())
                nearby = [root / listed for root in (place.parent, *roots)]
                yield next((p for p in nearby if p.is_file()), nearby[0])
    elif place.is_dir():
        yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _yolo_label_file(picture: Path) -> Path:
    """Return where the labels of a picture stand: in "labels" instead of the last "images", else beside it."""
    parts = picture.parts
    places = [position for position, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        moved = Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]).with_suffix(".txt")
        if moved.is_file() or not picture.with_suffix(".txt").is_file():
            return moved
    return picture.with_suffix(".txt")


_Corners = tuple[float, float, float, float]


def _yolo_rows(
    file: Path, names: Mapping[int, str], has_keypoints: bool, collected: _Collected
) -> list[tuple[int, _Corners]]:
    """Return (class id, corners as shares of width and height) of each valid line."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}: {line.strip()[:60]}"
        try:
            class_id, *values = (float(word) for word in line.split())
        except ValueError:
            collected.omit("lines that are not numbers", where)
            continue
        if class_id not in names:
            collected.omit("lines with a class that has no name", where)
            continue
        corners = _yolo_corners(values, has_keypoints)
        if corners is None:
            collected.omit("lines that are no box with values from 0 to 1", where)
            continue
        rows.append((int(class_id), corners))
    return rows


def _yolo_corners(values: Sequence[float], has_keypoints: bool) -> _Corners | None:
    """Read centre and size, or the corners of an outline; keypoints after the box are left out."""
    if not all(math.isfinite(value) for value in values):
        return None
    if len(values) in (4, 5) or (has_keypoints and len(values) > 5):
        x, y, width, height = values[:4]
        inside = 0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 and 0 < height <= 1
        return (x - width / 2, y - height / 2, x + width / 2, y + height / 2) if inside else None
    if len(values) < 6 or len(values) % 2 or not all(-0.01 <= value <= 1.01 for value in values):
        return None
    xs, ys = values[0::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)


# Pascal VOC


def _read_voc(files: Sequence[Path], source: Path) -> RawLabels:
    """Read one XML file per picture; ``difficult`` objects count neither as hit nor as miss."""
    collected = _Collected()
    ids: dict[str, int] = {}
    sizes: list[tuple[int, Path]] = []
    for file in files:
        root = _voc_root(file, collected)
        if root is None:
            continue
        name, picture = _voc_picture(root, file, source)
        size = [root.findtext(f"size/{key}", "0") for key in ("width", "height")]
        width_px, height_px = (int(float(value)) if value.strip().isdigit() else 0 for value in size)
        image_id = collected.add_image(name, (width_px, height_px))
        if not (width_px and height_px) and picture is not None:
            sizes.append((image_id - 1, picture))
        for element in root.iterfind("object"):
            _add_voc_object(element, image_id, ids, collected, file)
    if not collected.images:
        raise DataError(
            f"{source} has no readable Pascal VOC file",
            seen="; ".join(f"{why}: {example}" for why, example in collected.examples.items()) or "no file",
            fix="give a folder of XML files with annotation, size and object, as labelling tools write them",
        )
    for (position, _), (width_px, height_px) in zip(sizes, _sizes_px([p for _, p in sizes]), strict=True):
        collected.images[position].update(width=width_px, height=height_px)
    return collected.labels({category_id: name for name, category_id in ids.items()})


def _voc_root(file: Path, collected: _Collected) -> ElementTree.Element | None:
    text = _text(file)
    if "<!ENTITY" in text:  # entities can expand without limit
        collected.omit("files with XML entities", str(file))
        return None
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        collected.omit("files that are not XML", f"{file.name} ({error})")
        return None
    if root.tag != "annotation":
        collected.omit("XML files that are no annotation", f"{file.name} (<{root.tag}>)")
        return None
    return root


def _voc_picture(root: ElementTree.Element, file: Path, source: Path) -> tuple[str, Path | None]:
    """Return the name of the labelled picture, and the file where it stands in a usual place."""
    folders = [file.parent, *(file.parent.parent / name for name in ("JPEGImages", "images", "."))]
    for folder in folders:
        for suffix in sorted(SUFFIXES):
            for spelled in (suffix, suffix.upper()):
                picture = folder / (file.stem + spelled)
                if picture.is_file():
                    return picture.as_posix(), picture
    named = root.findtext("filename", "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    if not named or Path(named).suffix.lower() not in SUFFIXES:
        named = f"{file.stem}.jpg"
    below = file.parent.relative_to(source) if source.is_dir() else Path()
    return (below / named).as_posix(), None


def _add_voc_object(
    element: ElementTree.Element, image_id: int, ids: dict[str, int], collected: _Collected, file: Path
) -> None:
    name = element.findtext("name", "").strip()
    corners = [element.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        values = [float(value) for value in corners]
    except ValueError:
        values = [math.nan]
    if not name or not all(math.isfinite(value) for value in values):
        collected.omit("objects without a name or a box", f"{file.name}: {name or '-'} {corners}")
        return
    ignore = element.findtext("difficult", "0").strip() == "1"
    collected.add_box(image_id, ids.setdefault(name, len(ids) + 1), values, ignore)
