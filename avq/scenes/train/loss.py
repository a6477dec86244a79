"""Which grid points learn which object (task-aligned assignment), and how wrong they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

TOP_POINTS = 10
SCORE_POWER, IOU_POWER = 0.5, 4.0
CLASS_WEIGHT, BOX_WEIGHT = 1.0, 4.0
# Labels less tall than this teach nothing; points inside them are left out of the class loss.
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
