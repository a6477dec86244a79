"""Heads as families publish them: what is learnt, how it is decoded for the loss, and what the file contains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from avq.decoders.retinanet import base_anchors
from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX
from avq.scenes.train.model import BOX_WEIGHT, Targets, assign
from tests.replicas.loss import (
    Prediction,
    bins_loss,
    box_loss,
    objectness_scores,
    sigmoid_scores,
    softmax_scores,
)
from tests.replicas.model import FEATURES, STRIDES_PX, Block, Separable, grid, sizes

CLASSES = len(CLASS_NAMES)
RARE = -4.6  # bias of a score before anything is learnt: 1 %


def bare(inputs: int, outputs: int, size: int = 1, bias: float = 0.0) -> nn.Conv2d:
    """A last convolution: its output is read as numbers."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.constant_(conv.bias, bias)
    nn.init.normal_(conv.weight, std=0.01)
    return conv


def rows(x: Tensor, features: int) -> Tensor:
    """(B, A * F, h, w) to (B, h * w * A, F): cell by cell, anchor by anchor."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, features)


class DenseHead(nn.Module, ABC):
    """Anchors or points on three maps, assigned by score and overlap.

    Subclasses give ``predict`` for the loss and ``exported`` for the file; both read what ``forward`` computes.
    """

    points: Tensor
    strides: Tensor

    def __init__(self, offset_cells: float = 0.5, anchors: int = 1) -> None:
        super().__init__()
        points, strides = grid(offset_cells, anchors)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("strides", strides, persistent=False)

    @abstractmethod
    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        """What the loss reads."""

    @abstractmethod
    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        """What the file's outputs are."""

    def score_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return sigmoid_scores(found, targets)

    def extra_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return torch.zeros(())

    def loss(self, raw: list[list[Tensor]], boxes: Tensor, classes: Tensor) -> Tensor:
        found = self.predict(raw)
        targets = assign(self.points, self.strides, found.boxes, found.logits, boxes, classes)
        total = targets.weights.sum().clamp(min=1.0)
        parts = self.score_loss(found, targets) + BOX_WEIGHT * box_loss(found, targets)
        return (parts + self.extra_loss(found, targets)) / total


def joined(raw: list[list[Tensor]], index: int, features: int) -> Tensor:
    return torch.cat([rows(level[index].float(), features) for level in raw], 1)


def product_logit(objectness: Tensor, classes: Tensor) -> Tensor:
    """The logit of sigmoid(a) * sigmoid(b)."""
    log = functional.logsigmoid(objectness) + functional.logsigmoid(classes)
    return log - torch.log1p(-log.exp().clamp(max=1 - 1e-6))


class Yolox(DenseHead):
    """Decoupled depthwise branches; exported without grid arithmetic, as YOLOX's own exporter does by default."""

    def __init__(self, act: str) -> None:
        super().__init__(offset_cells=0.0)
        n = FEATURES
        self.stems = nn.ModuleList(Block(n, n, act, size=1) for _ in STRIDES_PX)
        self.class_convs = nn.ModuleList(Separable(n, n, act) for _ in STRIDES_PX)
        self.box_convs = nn.ModuleList(Separable(n, n, act) for _ in STRIDES_PX)
        self.classes = nn.ModuleList(bare(n, CLASSES) for _ in STRIDES_PX)
        self.boxes = nn.ModuleList(bare(n, 4) for _ in STRIDES_PX)
        self.objects = nn.ModuleList(bare(n, 1, bias=RARE) for _ in STRIDES_PX)
        for conv in self.boxes:
            conv.bias.data = torch.tensor([0.5, 0.5, 1.2, 1.2])

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        raw = []
        for k, feature in enumerate(features):
            x = self.stems[k](feature)
            y = self.box_convs[k](x)
            raw.append([self.boxes[k](y), self.objects[k](y), self.classes[k](self.class_convs[k](x))])
        return raw

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        box, objectness, classes = (joined(raw, i, n) for i, n in enumerate((4, 1, CLASSES)))
        stride = self.strides[:, None]
        centre = box[..., :2] * stride + self.points
        half = box[..., 2:].clamp(max=5).exp() * stride / 2
        boxes = torch.cat([centre - half, centre + half], -1)
        return Prediction(boxes, product_logit(objectness, classes), objectness, classes)

    def score_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return objectness_scores(found, targets)

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        parts = [torch.cat([b, o.sigmoid(), c.sigmoid()], 1).flatten(2) for b, o, c in raw]
        return (torch.cat(parts, 2).permute(0, 2, 1),)


class Yolov5(DenseHead):
    """One bare convolution per map for three anchors, decoded in the graph."""

    ANCHORS_PX = (
        ((8.0, 14.0), (14.0, 10.0), (20.0, 22.0)),
        ((18.0, 40.0), (40.0, 26.0), (34.0, 56.0)),
        ((80.0, 50.0), (60.0, 100.0), (140.0, 110.0)),
    )

    def __init__(self, act: str) -> None:
        super().__init__(anchors=3)
        self.outs = nn.ModuleList(bare(FEATURES, 3 * (5 + CLASSES)) for _ in STRIDES_PX)
        for conv in self.outs:
            conv.bias.data.view(3, -1)[:, 4] = RARE
        sizes_px = [
            torch.tensor(a).repeat(h * w, 1) for a, (h, w, _) in zip(self.ANCHORS_PX, sizes(), strict=True)
        ]
        self.register_buffer("anchors", torch.cat(sizes_px), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        return [[out(x)] for out, x in zip(self.outs, features, strict=True)]

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        table = joined(raw, 0, 5 + CLASSES)
        box = table[..., :4].sigmoid()
        centre = (2 * box[..., :2] - 1) * self.strides[:, None] + self.points
        half = (2 * box[..., 2:]).square() * self.anchors / 2
        objectness, classes = table[..., 4:5], table[..., 5:]
        boxes = torch.cat([centre - half, centre + half], -1)
        return Prediction(boxes, product_logit(objectness, classes), objectness, classes)

    def score_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return objectness_scores(found, targets)

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        parts = []
        for (x,), anchors, (h, w, stride) in zip(raw, self.ANCHORS_PX, sizes(), strict=True):
            y = x.view(1, 3, 5 + CLASSES, h, w).permute(0, 1, 3, 4, 2).sigmoid()
            ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            cells = torch.stack([xs, ys], -1).float()[None, None] - 0.5
            xy, wh, rest = y.split((2, 2, 1 + CLASSES), 4)
            xy = (xy * 2 + cells) * stride
            wh = (wh * 2) ** 2 * torch.tensor(anchors).view(1, 3, 1, 1, 2)
            parts.append(torch.cat([xy, wh, rest], 4).view(1, 3 * h * w, 5 + CLASSES))
        return (torch.cat(parts, 1),)


class Yolov6(DenseHead):
    """Decoupled branches, plain distances, a column of ones where objectness would be."""

    WIDTH = 24

    def __init__(self, act: str) -> None:
        super().__init__()
        n = self.WIDTH
        self.stems = nn.ModuleList(Block(FEATURES, n, act, size=1) for _ in STRIDES_PX)
        self.class_convs = nn.ModuleList(Block(n, n, act) for _ in STRIDES_PX)
        self.box_convs = nn.ModuleList(Block(n, n, act) for _ in STRIDES_PX)
        self.classes = nn.ModuleList(bare(n, CLASSES, bias=RARE) for _ in STRIDES_PX)
        self.boxes = nn.ModuleList(bare(n, 4, bias=2.0) for _ in STRIDES_PX)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        raw = []
        for k, feature in enumerate(features):
            x = self.stems[k](feature)
            raw.append([self.boxes[k](self.box_convs[k](x)), self.classes[k](self.class_convs[k](x))])
        return raw

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        sides = joined(raw, 0, 4) * self.strides[:, None]
        boxes = torch.cat([self.points - sides[..., :2], self.points + sides[..., 2:]], -1)
        return Prediction(boxes, joined(raw, 1, CLASSES))

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        sides = torch.cat([b.flatten(2) for b, _ in raw], 2).permute(0, 2, 1)
        scores = torch.cat([c.sigmoid().flatten(2) for _, c in raw], 2).permute(0, 2, 1)
        low, high = sides.split((2, 2), 2)
        points, stride = self.points / self.strides[:, None], self.strides[:, None]
        low, high = points - low, points + high
        box = torch.cat([(low + high) / 2, high - low], 2) * stride
        return (torch.cat([box, torch.ones(1, len(self.points), 1), scores], 2),)


class Yolov8(DenseHead):
    """Distances as expectations over 16 bins; depthwise class branch as in YOLO11."""

    BINS = 16

    def __init__(self, act: str) -> None:
        super().__init__()
        n = FEATURES
        self.box_convs = nn.ModuleList(Block(n, n, act) for _ in STRIDES_PX)
        self.class_convs = nn.ModuleList(Separable(n, n, act) for _ in STRIDES_PX)
        self.boxes = nn.ModuleList(bare(n, 4 * self.BINS, bias=1.0) for _ in STRIDES_PX)
        self.classes = nn.ModuleList(bare(n, CLASSES, bias=RARE) for _ in STRIDES_PX)
        self.register_buffer("counts", torch.arange(self.BINS).float(), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        return [
            [self.boxes[k](self.box_convs[k](x)), self.classes[k](self.class_convs[k](x))]
            for k, x in enumerate(features)
        ]

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        flat = joined(raw, 0, 4 * self.BINS)
        bins = flat.view(*flat.shape[:2], 4, self.BINS)
        sides = (bins.softmax(-1) @ self.counts) * self.strides[:, None]
        boxes = torch.cat([self.points - sides[..., :2], self.points + sides[..., 2:]], -1)
        return Prediction(boxes, joined(raw, 1, CLASSES), bins=bins)

    def extra_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return 0.5 * bins_loss(found, targets, self.points, self.strides)

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        count = len(self.points)
        table = torch.cat([torch.cat(level, 1).flatten(2) for level in raw], 2)
        box, scores = table.split((4 * self.BINS, CLASSES), 1)
        spread = box.view(1, 4, self.BINS, count).transpose(2, 1).softmax(1)
        sides = functional.conv2d(spread, self.counts.view(1, self.BINS, 1, 1)).view(1, 4, count)
        low, high = sides.chunk(2, 1)
        points = (self.points / self.strides[:, None]).T[None]
        low, high = points - low, points + high
        box = torch.cat([(low + high) / 2, high - low], 1) * self.strides
        return (torch.cat([box, scores.sigmoid()], 1),)


class Ssd(DenseHead):
    """Prior boxes with variances, softmax over background and classes, depthwise steps as in SSDLite."""

    VARIANCES = (0.1, 0.2)
    SHAPES = (  # (width, height) of the priors in strides, per map: four, six, six
        ((2.0, 2.0), (2.8, 2.8), (3.2, 1.6), (1.2, 3.0)),
        ((2.0, 2.0), (2.8, 2.8), (3.2, 1.6), (1.2, 3.0), (4.0, 2.2), (1.6, 4.0)),
        ((2.0, 2.0), (2.8, 2.8), (3.2, 1.6), (1.2, 3.0), (5.0, 3.4), (1.6, 4.0)),
    )

    def __init__(self, act: str) -> None:
        super().__init__()
        n = FEATURES
        self.score_convs = nn.ModuleList(Block(n, n, act, groups=n) for _ in STRIDES_PX)
        self.box_convs = nn.ModuleList(Block(n, n, act, groups=n) for _ in STRIDES_PX)
        self.scores = nn.ModuleList(bare(n, len(s) * (CLASSES + 1)) for s in self.SHAPES)
        self.boxes = nn.ModuleList(bare(n, len(s) * 4) for s in self.SHAPES)
        points, strides, priors = [], [], []
        at = 0
        for shapes, conv, (h, w, stride) in zip(self.SHAPES, self.scores, sizes(), strict=True):
            conv.bias.data.view(len(shapes), -1)[:, 0] = -RARE
            cells = self.points[at : at + h * w]
            at += h * w
            points.append(cells.repeat_interleave(len(shapes), 0))
            strides.append(torch.full((len(points[-1]),), float(stride)))
            priors.append(torch.tensor(shapes).repeat(h * w, 1) * stride)
        self.points, self.strides = torch.cat(points), torch.cat(strides)
        self.register_buffer("prior_sizes", torch.cat(priors), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        return [
            [self.boxes[k](self.box_convs[k](x)), self.scores[k](self.score_convs[k](x))]
            for k, x in enumerate(features)
        ]

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        delta, classes = joined(raw, 0, 4), joined(raw, 1, CLASSES + 1)
        centre = self.points + delta[..., :2] * self.VARIANCES[0] * self.prior_sizes
        half = (delta[..., 2:] * self.VARIANCES[1]).clamp(max=4).exp() * self.prior_sizes / 2
        boxes = torch.cat([centre - half, centre + half], -1)
        log = classes.log_softmax(-1)[..., 1:]
        return Prediction(boxes, log - torch.log1p(-log.exp().clamp(max=1 - 1e-6)), classes=classes)

    def score_loss(self, found: Prediction, targets: Targets) -> Tensor:
        return softmax_scores(found, targets)

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        unit = torch.tensor([INPUT_WIDTH_PX, INPUT_HEIGHT_PX]).float()
        priors = torch.cat([self.points / unit, self.prior_sizes / unit], 1)[None]
        delta, classes = (
            torch.cat([rows(level[i], n) for level in raw], 1) for i, n in ((0, 4), (1, CLASSES + 1))
        )
        centre = delta[..., :2] * self.VARIANCES[0] * priors[..., 2:] + priors[..., :2]
        size = torch.exp(delta[..., 2:] * self.VARIANCES[1]) * priors[..., 2:]
        return classes.softmax(2), torch.cat([centre - size / 2, centre + size / 2], 2)


class Retinanet(DenseHead):
    """Nine anchors, two subnets shared by all maps, sigmoid scores and raw deltas per map."""

    ANCHORS, WIDTH = 9, 16

    def __init__(self, act: str) -> None:
        super().__init__(offset_cells=0.0, anchors=self.ANCHORS)
        n = self.WIDTH
        self.class_conv, self.box_conv = Block(FEATURES, n, act), Block(FEATURES, n, act)
        self.classes = bare(n, self.ANCHORS * CLASSES, 3, RARE)
        self.boxes = bare(n, self.ANCHORS * 4, 3)
        anchors = [torch.from_numpy(base_anchors(s)).repeat(h * w, 1) for h, w, s in sizes()]
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        return [[self.classes(self.class_conv(x)), self.boxes(self.box_conv(x))] for x in features]

    def predict(self, raw: list[list[Tensor]]) -> Prediction:
        classes, delta = joined(raw, 0, CLASSES), joined(raw, 1, 4)
        centre = self.points + self.anchors[:, :2] + delta[..., :2] * self.anchors[:, 2:]
        half = delta[..., 2:].clamp(max=4).exp() * self.anchors[:, 2:] / 2
        return Prediction(torch.cat([centre - half, centre + half], -1), classes)

    def exported(self, raw: list[list[Tensor]]) -> tuple[Tensor, ...]:
        return (*(c.sigmoid() for c, _ in raw), *(b for _, b in raw))
