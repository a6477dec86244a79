"""Decode raw outputs to the boxes of one frame: candidates, NMS, back to picture pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from avq.decoders.boxes import Candidates
from avq.decoders.recognise import NONE, find_decoder
from avq.errors import DataError
from avq.hookspecs import Decoder
from avq.types import F32, F64, I64, AnyArray, DecoderSpec, Detections, ModelInput, RawOutputs

_MAX_CANDIDATES = 30_000
_OPENCV_SUMS = (np.dtype(np.float32), np.dtype(np.float64))


class DetectionDecoder:
    """Decode outputs as a spec describes, without the graph.

    Args:
        spec: decoder spec of the bundle.
        decoders: known families; None uses the built-in ones.
        package: of the plugin that brings the family, for the error without it.
    """

    def __init__(
        self, spec: DecoderSpec, decoders: Sequence[Decoder] | None = None, package: str = ""
    ) -> None:
        self.spec = spec
        self._family = None if spec.family == NONE else find_decoder(spec.family, decoders, package)

    def decode(
        self,
        raw: RawOutputs,
        model_input: ModelInput,
        *,
        camera: str = "",
        seq: int = 0,
        t_capture_ns: int = 0,
        score_threshold: float | None = None,
    ) -> Detections:
        """Return boxes in picture pixels, clipped to the picture, best score first.

        Args:
            raw: output name -> array, as the engine returns it.
            model_input: the preprocessed picture.
            camera: camera id of the frame.
            seq: sequence number of the frame.
            t_capture_ns: capture time of the frame.
            score_threshold: lowest score; None uses that of the spec.

        Raises:
            DataError: an output holds NaN or infinity.
            ModelError: an output that the head needs is missing.
        """
        if self._family is None:
            return Detections.none(camera, seq, t_capture_ns)
        threshold = self.spec.score_threshold if score_threshold is None else score_threshold
        check_finite(raw)
        candidates = _valid(self._family.candidates(raw, self.spec, threshold))
        if not self._family.nms_in_graph:
            candidates = suppress(*candidates, self.spec.iou_threshold, self.spec.max_detections)
        boxes, scores, class_ids = candidates
        boxes = to_image(boxes, model_input.model_to_image, model_input.image_size_px)
        visible = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        order = visible[np.argsort(-scores[visible], kind="stable")][: self.spec.max_detections]
        return Detections(boxes[order], scores[order], class_ids[order], camera, seq, t_capture_ns)


def check_finite(raw: RawOutputs) -> None:
    """Raise DataError for the first float output that holds NaN or infinity."""
    for name, values in raw.items():
        if values.dtype.kind != "f" or math.isfinite(_sum(values)):
            continue  # one sum suffices: NaN and infinity survive addition
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise DataError(
                f"the output '{name}' is not finite",
                seen=f"{bad} of {values.size} are NaN or Inf",
                fix="compare it with the float model: avq eval BUNDLE --reference MODEL",
            )


def _sum(values: AnyArray) -> float:
    """Return the sum; OpenCV is about three times as fast as NumPy for large outputs."""
    if values.size and values.dtype in _OPENCV_SUMS and values.flags.c_contiguous:
        return cv2.sumElems(values.reshape(1, -1))[0]
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is checked again element by element
        return float(np.add.reduce(values, axis=None))


def _valid(candidates: Candidates) -> Candidates:
    """Keep boxes with an area, and no more than NMS can process."""
    boxes, scores, class_ids = candidates
    valid = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    keep = np.flatnonzero(valid)
    if len(keep) > _MAX_CANDIDATES:
        keep = keep[np.argsort(-scores[keep], kind="stable")[:_MAX_CANDIDATES]]
    return boxes[keep], scores[keep], class_ids[keep]


def suppress(boxes: F32, scores: F32, class_ids: I64, iou_threshold: float, most: int) -> Candidates:
    """Apply class-wise non-maximum suppression (OpenCV); best scores first.

    Args:
        boxes: (N, 4) float32 x0, y0, x1, y1.
        scores: (N,) float32.
        class_ids: (N,) int64.
        iou_threshold: larger IoU of the same class suppresses a box.
        most: largest number of boxes to keep.
    """
    if len(scores) == 0:
        return boxes, scores, class_ids
    rectangles = boxes.astype(np.float64)
    rectangles[:, 2:] -= rectangles[:, :2]
    order = np.argsort(-scores, kind="stable")
    ids = class_ids[order].astype(np.int32)
    kept = cv2.dnn.NMSBoxesBatched(rectangles[order], scores[order], ids, -1.0, iou_threshold)  # type: ignore[arg-type]
    kept_rows = order[np.sort(np.asarray(kept, np.int64).reshape(-1))[:most]]
    return boxes[kept_rows], scores[kept_rows], class_ids[kept_rows]


def to_image(boxes: F32, model_to_image: F64, image_size_px: tuple[int, int]) -> F32:
    """Map (N, 4) boxes from network-input pixels to picture pixels, clipped to the picture.

    Args:
        boxes: (N, 4) float32 x0, y0, x1, y1.
        model_to_image: (2, 3) affine map of the ``ModelInput``.
        image_size_px: (width, height) of the picture.

    Returns:
        (N, 4) float32.
    """
    width, height = image_size_px
    mapped = to_image_unclipped(boxes, model_to_image)
    clipped: F32 = np.clip(mapped, 0.0, [width, height, width, height]).astype(np.float32)
    return clipped


def to_image_unclipped(boxes: F32, model_to_image: F64) -> F64:
    """Map (N, 4) boxes from network-input pixels to picture pixels; parts outside of the picture stay. Float64."""
    scale = np.array([model_to_image[0, 0], model_to_image[1, 1]] * 2)
    shift = np.array([model_to_image[0, 2], model_to_image[1, 2]] * 2)
    mapped: F64 = boxes * scale + shift
    return mapped
