"""The built-in detector: dense 3x3 convolutions, ReLU, three strides, anchor-free.

Plain on purpose. Dense convolutions with channel counts that are multiples of 32 are what INT8 engines are fast at,
and ReLU networks without depthwise convolutions keep their accuracy at INT8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

STRIDES_PX = (8, 16, 32)
STAGE_CHANNELS = (32, 64, 128, 128)
NECK_CHANNELS = 64
HEAD_CHANNELS = 128


class ConvBlock(nn.Module):  # type: ignore[misc]
    """3x3 (or 1x1) convolution, batch normalisation and, unless ``linear``, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y if self.linear else torch.relu(y)


class Residual(nn.Module):  # type: ignore[misc]
    """relu(x + conv(conv(x))), all at one width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = ConvBlock(channels, channels, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class Head(nn.Module):  # type: ignore[misc]
    """One stride's head: a 3x3 block, then one bare 1x1 convolution for boxes and one for classes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.block = ConvBlock(inputs, HEAD_CHANNELS)
        self.class_out = nn.Conv2d(HEAD_CHANNELS, len(CLASS_NAMES), 1)
        self.box_out = nn.Conv2d(HEAD_CHANNELS, 4, 1)
        nn.init.constant_(self.class_out.bias, -4.6)
        # A fresh box reaches two cells to each side of its grid point.
        self.box_out.bias.data = torch.tensor([-2.0, -2.0, 2.0, 2.0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.block(x)
        return self.box_out(y), self.class_out(y)


class RoadDetector(nn.Module):  # type: ignore[misc]
    """images (B,3,192,320) in 0..1 -> boxes (B,N,4) xyxy in input pixels, class logits (B,N,5); N = 1260."""

    points: Tensor
    point_strides: Tensor

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c3, c4 = STAGE_CHANNELS
        n = NECK_CHANNELS
        self.stem = ConvBlock(3, c1, stride=2)
        self.stage2 = nn.Sequential(ConvBlock(c1, c2, stride=2), Residual(c2), Residual(c2))
        self.stage3 = nn.Sequential(ConvBlock(c2, c3, stride=2), Residual(c3))
        self.stage4 = nn.Sequential(ConvBlock(c3, c4, stride=2), ConvBlock(c4, c4))
        self.stage5 = ConvBlock(c4, n, stride=2)
        self.lateral4 = ConvBlock(c4, n, size=1, linear=True)
        self.lateral3 = ConvBlock(c3, n, size=1, linear=True)
        self.smooth4 = ConvBlock(n, n)
        self.smooth3 = ConvBlock(n, n)
        self.heads = nn.ModuleList(Head(n) for _ in STRIDES_PX)
        points, strides = grid_points()
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("point_strides", strides, persistent=False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three neck maps, (B,64,h,w) at strides 8, 16 and 32."""
        c3 = self.stage3(self.stage2(self.stem(images)))
        c4 = self.stage4(c3)
        p5 = self.stage5(c4)
        p4 = self.smooth4(torch.relu(self.lateral4(c4) + nn.functional.interpolate(p5, scale_factor=2.0)))
        p3 = self.smooth3(torch.relu(self.lateral3(c3) + nn.functional.interpolate(p4, scale_factor=2.0)))
        return p3, p4, p5

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, logits = [], []
        for head, feature in zip(self.heads, self.features(images), strict=True):
            box, logit = head(feature)
            boxes.append(box.flatten(2))
            logits.append(logit.flatten(2))
        offsets = torch.cat(boxes, 2).transpose(1, 2).float()
        centres = torch.cat([self.points, self.points], 1)
        return offsets * self.point_strides[:, None] + centres, torch.cat(logits, 2).transpose(1, 2).float()


def grid_points() -> tuple[Tensor, Tensor]:
    """Cell centres (N,2) xy in input pixels and their strides (N,), stride by stride, row by row."""
    points, strides = [], []
    for stride in STRIDES_PX:
        ys = (torch.arange(INPUT_HEIGHT_PX // stride) + 0.5) * stride
        xs = (torch.arange(INPUT_WIDTH_PX // stride) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([grid_x.flatten(), grid_y.flatten()], 1))
        strides.append(torch.full((grid_x.numel(),), float(stride)))
    return torch.cat(points), torch.cat(strides)


# Task-aligned assignment of objects to grid points, and the loss.

TOP_POINTS = 10
SCORE_POWER, IOU_POWER = 0.5, 4.0
CLASS_WEIGHT, BOX_WEIGHT = 1.0, 4.0
# Labels less tall than this are not learnt; points inside them are left out of the class loss.
LEAST_HEIGHT_PX = 8.0


@dataclass(frozen=True)
class Targets:
    """Per point: soft class scores (B,N,C), boxes (B,N,4), a weight (B,N; 0 is background), and which count (B,N)."""

    scores: Tensor
    boxes: Tensor
    weights: Tensor
    counted: Tensor


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """(B,M,4) and (B,N,4) to (B,M,N)."""
    low = torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    high = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return shared / (area_a[:, :, None] + area_b[:, None, :] - shared + 1e-6)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """CIoU of matching rows (K,4): overlap, centre distance and shape."""
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    size_a, size_b = (a[:, 2:] - a[:, :2]).clamp(min=1e-3), (b[:, 2:] - b[:, :2]).clamp(min=1e-3)
    union = size_a.prod(-1) + size_b.prod(-1) - shared + 1e-6
    iou = shared / union
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    apart = ((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).square().sum(-1)
    shape = (
        4
        / torch.pi**2
        * (torch.atan(size_b[:, 0] / size_b[:, 1]) - torch.atan(size_a[:, 0] / size_a[:, 1])).square()
    )
    with torch.no_grad():
        weight = shape / (1 - iou + shape + 1e-6)
    return iou - apart / (hull.square().sum(-1) + 1e-6) - weight * shape


def assign(
    points: Tensor, strides: Tensor, boxes: Tensor, logits: Tensor, true_boxes: Tensor, true_classes: Tensor
) -> Targets:
    """For every object the ``TOP_POINTS`` points whose class score and overlap agree best."""
    with torch.no_grad():
        tall = (true_boxes[..., 3] - true_boxes[..., 1]) >= LEAST_HEIGHT_PX
        real = true_classes >= 0
        inside, near = _candidates(points, strides, true_boxes)
        usable = (inside | near) & (real & tall)[:, :, None]
        iou = pairwise_iou(true_boxes, boxes)
        index = true_classes.clamp(min=0)[:, :, None].expand(-1, -1, boxes.shape[1])
        score = torch.gather(logits.sigmoid().transpose(1, 2), 1, index)
        fit = score.pow(SCORE_POWER) * iou.pow(IOU_POWER) * usable + usable * 1e-9
        tiny = (inside & (real & ~tall)[:, :, None]).any(1)
        return _match(fit, usable, iou, true_boxes, true_classes.clamp(min=0), logits.shape[2], tiny)


def _match(
    fit: Tensor, usable: Tensor, iou: Tensor, true_boxes: Tensor, labels: Tensor, classes: int, tiny: Tensor
) -> Targets:
    """From fit, usable and iou (B,M,N) to what each point learns."""
    best = fit.topk(TOP_POINTS, dim=2).indices
    chosen = torch.zeros_like(usable).scatter_(2, best, True) & usable
    # A point wanted by several objects goes to the one it overlaps most.
    owner_iou, owner = torch.where(chosen, iou, -1.0).max(1)
    taken = owner_iou >= 0
    mine = chosen & (torch.arange(fit.shape[1])[None, :, None] == owner[:, None, :])
    fit = fit * mine
    scaled = fit / (fit.amax(2, keepdim=True) + 1e-12) * (iou * mine).amax(2, keepdim=True)
    weights = scaled.amax(1) * taken
    rows = torch.arange(fit.shape[0])[:, None]
    scores = functional.one_hot(labels[rows, owner], classes).float() * weights[..., None]
    return Targets(scores, true_boxes[rows, owner], weights, taken | ~tiny)


def _candidates(points: Tensor, strides: Tensor, true_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(B,M,N) masks: points inside a box, and points within one stride of its middle (for thin boxes)."""
    low = points[None, None] - true_boxes[:, :, None, :2]
    high = true_boxes[:, :, None, 2:] - points[None, None]
    inside = torch.minimum(low, high).amin(-1) > 0
    middle = (true_boxes[..., :2] + true_boxes[..., 2:])[:, :, None] / 2
    near = (points[None, None] - middle).abs().amax(-1) < strides * 0.8
    return inside, near


def detection_loss(boxes: Tensor, logits: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Class loss (varifocal) and box loss (CIoU), both already weighted, scalars."""
    total = targets.weights.sum().clamp(min=1.0)
    probability = logits.sigmoid()
    focus = torch.where(targets.scores > 0, targets.scores, 0.75 * probability.detach().square())
    raw = functional.binary_cross_entropy_with_logits(logits, targets.scores, reduction="none")
    class_loss = (raw * focus * targets.counted[..., None]).sum() / total
    mask = targets.weights > 0
    overlap = complete_iou(boxes[mask], targets.boxes[mask])
    box_loss = ((1 - overlap) * targets.weights[mask]).sum() / total
    return CLASS_WEIGHT * class_loss, BOX_WEIGHT * box_loss
