"""One replica: a trunk, a head, and how long it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tests.replicas import heads
from tests.replicas.detr import RtDetr
from tests.replicas.model import Activation, Kind, Trunk


@dataclass(frozen=True)
class Recipe:
    """What is trained.

    Attributes:
        family: the decoder that has to recognise the file.
        kind, act: of the trunk.
        head: class of the head.
        start: replica whose trained trunk it starts from; None: from nothing.
        steps: of batches.
        frozen: share of the steps in which only the head learns; a trunk that keeps its activation needs no more.
    """

    family: str
    kind: Kind
    act: Activation
    head: Callable[[str], nn.Module]
    start: str | None
    steps: int
    batch: int = 16
    frozen: float = 0.0


#: In the order of training: those that lend their trunk come first.
RECIPES = {
    "yolov8": Recipe("yolov8", "csp", "silu", heads.Yolov8, None, 1000),
    "yolov6": Recipe("yolov6", "residual", "relu", heads.Yolov6, None, 1000),
    "yolox": Recipe("yolox", "csp", "silu", heads.Yolox, "yolov8", 250, frozen=0.5),
    "yolov5": Recipe("yolov5", "csp", "leaky", heads.Yolov5, "yolov8", 250),
    "ssd": Recipe("builtin", "residual", "hardswish", heads.Ssd, "yolov6", 250),
    "retinanet": Recipe("retinanet", "residual", "relu", heads.Retinanet, "yolov6", 280, batch=8, frozen=0.5),
    "rtdetr": Recipe("nms_in_graph", "residual", "relu", RtDetr, "yolov6", 700, frozen=0.8),
}


class Replica(nn.Module):
    """images (B,3,192,320) in 0..1 -> what the head gives."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.trunk = Trunk(recipe.kind, recipe.act)
        self.head = recipe.head(recipe.act)

    def forward(self, images: Tensor) -> list[Any]:
        return self.head(self.trunk(images))


class Exported(nn.Module):
    """The same with the outputs that the family publishes."""

    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self.replica = replica

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.replica.head.exported(self.replica(images))
