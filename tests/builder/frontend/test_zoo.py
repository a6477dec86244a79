"""Real models: read as an independent decoder reads them, or refused; none misread.

The decoders of the material folder share nothing with avq; those of its two older models are here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from avq.builder.frontend.analyse import ModelAnalysis, analyse_file
from avq.builder.graph.model import FloatModel
from avq.compare import iou_matrix
from avq.decoders import DetectionDecoder
from avq.errors import RequestError
from avq.preprocess import Preprocessor
from tests.conftest import material_folder

pytestmark = [pytest.mark.slow, pytest.mark.material]

#: Boxes (N, 4) x0, y0, x1, y1 in picture pixels, scores (N,), classes (N,).
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]

SCORE = 0.35
PICTURES = 16
#: A score may fall by this factor and still stand for the same box: resizing differs in the last bit.
NEAR_SCORE = 0.85  # of the score
MEAN_IOU, SHARE = 0.95, 0.98

#: Names in ``MAKE`` of the material's decoders.
REFERENCES = {
    "yolov8n_320": "yolov8n",
    "yolo11n_320": "yolo11n",
    "yolov8n_int8dyn": "yolov8n",
    "yolov8n_seg_320": "yolov8n_seg",
    "ultraface_rfb320": "ultraface",
    "ultraface_rfb320_nopost": "ultraface",
    "scrfd_500m_bnkps": "scrfd500kps",
    "yunet_2026may": "yunet",
    "fastestv2_coco": "fastestv2",
    "retinaface_mnet": "retinaface",
    "centerface_480x640": "centerface_fixed",
}
#: Published preprocessings; those of other models come from their metadata, or their heads are not known.
PREPROCESS = {
    "ultraface_rfb320": "stretch,RGB,mean=127,std=128",
    "yolox_nano_416": "yolox",
    "naruto_yolox_nano": "yolox",
    "naruto_yolox_nano_post": "yolox",
    "nanodet_m_320": "nanodet",
}
MUST_BE_READ = {"yolov8n_320", "yolo11n_320", "yolov8n_int8dyn", *PREPROCESS}
#: The pictures show none of their classes: only uncertain boxes can be compared.
LOW_SCORE = {"naruto_yolox_nano": 0.02, "naruto_yolox_nano_post": 0.02}


def models() -> list[Path]:
    folder = material_folder()
    return sorted(folder.glob("models/*.onnx")) + sorted(folder.glob("zoo/*.onnx")) if folder else []


def session(model: bytes | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def infer(model: FloatModel) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    opened = session(model.proto.SerializeToString())
    names, given = [o.name for o in opened.get_outputs()], model.view.inputs[0].name
    return lambda values: dict(zip(names, opened.run(None, {given: values}), strict=True))


@pytest.fixture(scope="module")
def pictures(material: Path) -> list[np.ndarray]:
    files = sorted((material / "calibration" / "coco100").glob("*.jpg"))[:PICTURES]
    return [np.asarray(cv2.imread(str(file))) for file in files]


@pytest.fixture(scope="module")
def shared_decoders(material: Path) -> Any:
    file = material / "zoo" / "reference_decoders.py"
    if not file.is_file():
        pytest.skip("the material folder has no reference decoders")
    spec = importlib.util.spec_from_file_location("reference_decoders", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(path: Path, shared: Any, score: float) -> Callable[[np.ndarray], Boxes] | None:
    if path.stem in OWN_REFERENCES:
        return OWN_REFERENCES[path.stem](path, shared, score)
    name = REFERENCES.get(path.stem)
    if name is None or not (path.parent / f"{path.stem}.onnx").is_file():
        return None
    decoder = shared.MAKE[name]()
    return lambda pixels: decoder(pixels, score)


def reference_yolox(path: Path, shared: Any, score: float) -> Callable[[np.ndarray], Boxes]:
    """Top-left letterbox with 114, BGR 0..255; centre (x + gx) * s, size exp(w) * s, score objectness * class."""
    opened, size = session(str(path)), 416

    def detect(pixels: np.ndarray) -> Boxes:
        canvas, ratio, *_ = shared.lb(pixels, size, size, 114, False)
        rows = opened.run(None, {opened.get_inputs()[0].name: shared.chw(canvas)})[0][0].astype(np.float64)
        grid = [(x, y, s) for s in (8, 16, 32) for y in range(size // s) for x in range(size // s)]
        x, y, s = np.array(grid, np.float64).T
        centre = (rows[:, :2] + np.stack([x, y], 1)) * s[:, None]
        half = np.exp(rows[:, 2:4]) * s[:, None] / 2
        table = rows[:, 5:] * rows[:, 4:5]
        row, label = np.nonzero(table >= score)
        boxes = np.concatenate([centre - half, centre + half], 1)[row] / ratio
        return shared.nms(boxes, table[row, label], label, 0.65)

    return detect


def reference_nanodet(path: Path, shared: Any, score: float) -> Callable[[np.ndarray], Boxes]:
    """Centred letterbox with 0, ImageNet BGR; a side is the mean of 8 bins, from the point gx * s + (s - 1) / 2."""
    opened, size = session(str(path)), 320
    mean, std = np.array([103.53, 116.28, 123.675]), np.array([57.375, 57.12, 58.395])

    def detect(pixels: np.ndarray) -> Boxes:
        canvas, ratio, left, top = shared.lb(pixels, size, size, 0)
        values = ((canvas - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
        outputs = opened.run(None, {opened.get_inputs()[0].name: values})
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for scores, sides, stride in zip(outputs[:3], outputs[3:], (8, 16, 32), strict=True):
            bins = np.exp(sides[0].reshape(-1, 4, 8).astype(np.float64))
            ltrb = (bins / bins.sum(2, keepdims=True)) @ np.arange(8) * stride
            y, x = np.divmod(np.arange(len(ltrb)), -(-size // stride))
            points = np.stack([x, y], 1) * stride + (stride - 1) / 2
            parts.append((np.concatenate([points - ltrb[:, :2], points + ltrb[:, 2:]], 1), scores[0]))
        boxes, table = (np.concatenate(one) for one in zip(*parts, strict=True))
        row, label = np.nonzero(table >= score)
        return shared.nms((boxes[row] - [left, top, left, top]) / ratio, table[row, label], label, 0.65)

    return detect


def reference_suppressed_yolox(path: Path, shared: Any, score: float) -> Callable[[np.ndarray], Boxes]:
    """YOLOX with NMS in the graph: BGR 0..255, rows of batch, class, score, x1, y1, x2, y2."""
    opened, size = session(str(path)), 416

    def detect(pixels: np.ndarray) -> Boxes:
        canvas, ratio, *_ = shared.lb(pixels, size, size, 114, False)
        rows = opened.run(None, {opened.get_inputs()[0].name: shared.chw(canvas)})[0].reshape(-1, 7)
        rows = rows[rows[:, 2] >= score]
        return rows[:, 3:] / ratio, rows[:, 2], rows[:, 1].astype(int)

    return detect


OWN_REFERENCES: dict[str, Callable[[Path, Any, float], Callable[[np.ndarray], Boxes]]] = {
    "yolox_nano_416": reference_yolox,
    "naruto_yolox_nano": reference_yolox,
    "naruto_yolox_nano_post": reference_suppressed_yolox,
    "nanodet_m_320": reference_nanodet,
}


def decoded(analysis: ModelAnalysis, pictures: list[np.ndarray], score: float) -> Iterator[Boxes]:
    prepare, run = Preprocessor(analysis.spec), infer(analysis.model)
    decoder = DetectionDecoder(analysis.decoder)
    for pixels in pictures:
        prepared = prepare.prepare(pixels)
        found = decoder.decode(run(prepared.tensor), prepared, score_threshold=score)
        yield found.boxes_xyxy_px, found.scores, found.class_ids


def overlaps(of: Boxes, among: Boxes, score: float, size_px: tuple[int, int]) -> np.ndarray:
    """Largest IoU of each box from ``score`` on with one of the same class; both clipped to the picture."""
    width, height = size_px
    limits = [width, height, width, height]
    mine, others = (
        np.clip(np.asarray(b[0], np.float32).reshape(-1, 4), 0, limits).astype(np.float32)
        for b in (of, among)
    )
    same = np.asarray(of[2])[:, None] == np.asarray(among[2])[None]
    best = np.where(same, iou_matrix(mine, others), 0.0).max(axis=1, initial=0.0)
    return np.asarray(best[np.asarray(of[1]) >= score])


@pytest.mark.parametrize("path", models(), ids=lambda path: path.stem)
def test_a_real_model_is_read_right_or_refused(
    path: Path, pictures: list[np.ndarray], shared_decoders: Any
) -> None:
    score = LOW_SCORE.get(path.stem, SCORE)
    try:
        analysis = analyse_file(
            path,
            decoder=None,
            preprocess=PREPROCESS.get(path.stem),
            classes=None,
            sample_pixels=lambda: pictures,
            infer=infer,
        )
    except RequestError as error:
        assert path.stem not in MUST_BE_READ, error
        assert error.seen
        assert error.fix
        return
    detect = reference(path, shared_decoders, NEAR_SCORE * score)
    assert detect is not None, f"{path.stem} is decoded, and there is no reference to compare with"
    agreement: list[float] = []
    for pixels, found in zip(pictures, decoded(analysis, pictures, NEAR_SCORE * score), strict=True):
        expected, size_px = detect(pixels), (pixels.shape[1], pixels.shape[0])
        for one, other in ((expected, found), (found, expected)):
            agreement += overlaps(one, other, score, size_px).tolist()
    overlap = np.array(agreement)
    matched = overlap >= 0.5
    print(path.stem, len(overlap), matched.mean(), overlap[matched].mean())
    assert len(overlap) >= 2, "no boxes to compare"
    assert matched.mean() >= SHARE
    assert overlap[matched].mean() >= MEAN_IOU
