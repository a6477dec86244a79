"""The preprocessing spec: one definition for calibration, evaluation and serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSpec:
    """From a BGR picture to the network's numbers.

    The picture becomes uint8 (1, 3, height_px, width_px) outside the graph; inside it,
    value = (pixel * scale - mean[c]) / std[c], channels in ``channel_order``.

    Attributes:
        width_px: width of the network input.
        height_px: height of the network input.
        resize: "letterbox" keeps the aspect and pads; "crop" keeps it and cuts the centre out; "stretch" does not.
        anchor: where a letterboxed picture lies: "center" or "top-left".
        pad_value: 0..255, in every channel.
        channel_order: "RGB" or "BGR".
        scale: multiplied first, usually 1 or 1/255.
        mean: per channel in ``channel_order``, subtracted after ``scale``.
        std: per channel in ``channel_order``, divided by last.
    """

    width_px: int
    height_px: int
    resize: Literal["letterbox", "stretch", "crop"] = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad_value: int = 114
    channel_order: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1.0 / 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


# Preprocessing that detector families are published with, by name.

Preset = Callable[[int, int], PreprocessSpec]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _spec(width_px: int, height_px: int, **settings: Any) -> PreprocessSpec:
    return PreprocessSpec(width_px=width_px, height_px=height_px, **settings)


def _preset(**settings: Any) -> Preset:
    return partial(_spec, **settings)


_yolo = _preset()
_imagenet = _preset(resize="stretch", mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
_unit_stretch = _preset(resize="stretch")
_coco_bytes_bgr: dict[str, Any] = {
    "channel_order": "BGR",
    "scale": 1.0,
    "mean": (103.53, 116.28, 123.675),
    "std": (57.375, 57.12, 58.395),
}

#: Name -> function of (width_px, height_px).
PRESETS: Mapping[str, Preset] = {
    "yolox": _preset(anchor="top-left", channel_order="BGR", scale=1.0),
    "yolox-legacy": _preset(
        anchor="top-left", mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    ),  # YOLOX before release 0.1.1
    "yolov5": _yolo,
    "yolov6": _yolo,
    "yolov7": _yolo,
    "yolov8": _yolo,
    "yolo11": _yolo,
    "nanodet": _preset(pad_value=0, **_coco_bytes_bgr),
    "nanodet-stretch": _preset(resize="stretch", **_coco_bytes_bgr),
    "picodet": _imagenet,
    "retinanet": _preset(anchor="top-left", pad_value=0, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "torchvision": _preset(anchor="top-left", pad_value=0),
    "ssd": _preset(resize="stretch", scale=1.0, mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5)),
    "ssd-vgg": _preset(resize="stretch", scale=1.0, mean=(123.0, 117.0, 104.0)),
    "ssd-imagenet": _imagenet,
    "rtdetr": _unit_stretch,
    "builtin": _preset(anchor="top-left", channel_order="BGR"),
    "imagenet": _imagenet,
    "imagenet-bgr": _preset(
        resize="stretch", channel_order="BGR", mean=_IMAGENET_MEAN[::-1], std=_IMAGENET_STD[::-1]
    ),
    "rgb-unit": _unit_stretch,
    "bgr-unit": _preset(resize="stretch", channel_order="BGR"),
    "rgb-bytes": _preset(resize="stretch", scale=1.0),
    "bgr-bytes": _preset(resize="stretch", channel_order="BGR", scale=1.0),
}


# How raw outputs become boxes: a head family and its parameters.


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A recognised (or named) head; stored in the bundle, so serving needs no graph.

    Attributes:
        family: registered decoder name, or "none".
        params: JSON values the family needs: output names, strides, anchors, bins ...
        num_classes: number of classes the head scores; 0 for "none".
        score_threshold: boxes below are dropped when serving.
        iou_threshold: of class-wise NMS; unused by heads with NMS in the graph.
        max_detections: at most so many boxes per frame.
    """

    family: str
    params: Mapping[str, Any] = field(default_factory=dict)
    num_classes: int = 0
    score_threshold: float = 0.3
    iou_threshold: float = 0.65
    max_detections: int = 300
