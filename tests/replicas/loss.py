"""What all replicas learn by: the built-in detector's assignment, and a score loss per kind of score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from avq.scenes.train.model import Targets, complete_iou, pairwise_iou


@dataclass(frozen=True)
class Prediction:
    """boxes (B,N,4) xyxy in input pixels; logits (B,N,C) of the final scores; what only the family's loss reads."""

    boxes: Tensor
    logits: Tensor
    objectness: Tensor | None = None
    classes: Tensor | None = None
    bins: Tensor | None = None


def quality_loss(logits: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
    """Varifocal: every wanted score counts fully, the background by how wrong it is. Summed."""
    focus = torch.where(wanted > 0, wanted, 0.75 * logits.detach().sigmoid().square())
    raw = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (raw * focus * counted).sum()


def sigmoid_scores(found: Prediction, targets: Targets) -> Tensor:
    """One sigmoid per class."""
    return quality_loss(found.logits, targets.scores, targets.counted[..., None])


def objectness_scores(found: Prediction, targets: Targets) -> Tensor:
    """Objectness learns the overlap, classes only where there is an object."""
    assert found.objectness is not None and found.classes is not None
    quality = quality_loss(found.objectness, targets.weights[..., None], targets.counted[..., None])
    mask = targets.weights > 0
    wanted = (targets.scores[mask] > 0).float()
    classes = functional.binary_cross_entropy_with_logits(found.classes[mask], wanted, reduction="none")
    return quality + (classes.sum(-1) * targets.weights[mask]).sum()


def softmax_scores(found: Prediction, targets: Targets) -> Tensor:
    """Cross entropy against soft labels, background first; the background by how wrong it is."""
    assert found.classes is not None
    wanted = torch.cat([1 - targets.weights[..., None], targets.scores], -1)
    logs = found.classes.log_softmax(-1)
    raw = -(wanted * logs).sum(-1)
    wrong = 1 - logs[..., 0].detach().exp()
    focus = torch.where(targets.weights > 0, targets.weights, 0.75 * wrong.square())
    return (raw * focus * targets.counted).sum()


def box_loss(found: Prediction, targets: Targets) -> Tensor:
    mask = targets.weights > 0
    overlap = complete_iou(found.boxes[mask], targets.boxes[mask])
    return ((1 - overlap) * targets.weights[mask]).sum()


def bins_loss(found: Prediction, targets: Targets, points: Tensor, strides: Tensor) -> Tensor:
    """Distribution focal loss: the two bins around the true distance."""
    assert found.bins is not None  # (B, N, 4, K)
    mask = targets.weights > 0
    most = found.bins.shape[-1] - 1.01
    low, high = points - targets.boxes[..., :2], targets.boxes[..., 2:] - points
    true = (torch.cat([low, high], -1) / strides[:, None])[mask].clamp(0, most)
    left = true.long()
    logs = found.bins[mask].log_softmax(-1)
    share = true - left
    near = -(
        logs.gather(-1, left[..., None])[..., 0] * (1 - share)
        + logs.gather(-1, left[..., None] + 1)[..., 0] * share
    )
    return (near.mean(-1) * targets.weights[mask]).sum()


def one_to_one(
    found: Prediction, true_boxes: Tensor, true_classes: Tensor, least_height_px: float
) -> Targets:
    """DETR's matching: one prediction per object, by the cheapest assignment of all."""
    batch, count, classes = found.logits.shape
    scores = torch.zeros(batch, count, classes)
    boxes, weights = torch.zeros(batch, count, 4), torch.zeros(batch, count)
    counted = torch.ones(batch, count, dtype=torch.bool)
    with torch.no_grad():
        overlap = pairwise_iou(true_boxes, found.boxes)
        probability = found.logits.sigmoid()
        for i in range(batch):
            tall = true_boxes[i, :, 3] - true_boxes[i, :, 1] >= least_height_px
            rows = torch.nonzero((true_classes[i] >= 0) & tall)[:, 0]
            far = torch.cdist(true_boxes[i, rows], found.boxes[i], p=1) / 320
            cost = far - 2 * overlap[i, rows] - probability[i][:, true_classes[i, rows]].T
            mine, theirs = linear_sum_assignment(np.nan_to_num(cost.numpy(), nan=1e4))
            rows, theirs = rows[mine], torch.from_numpy(theirs)
            quality = overlap[i, rows, theirs].clamp(min=0.05)
            weights[i, theirs] = quality
            scores[i, theirs, true_classes[i, rows]] = quality
            boxes[i, theirs] = true_boxes[i, rows]
    return Targets(scores, boxes, weights, counted)


def set_loss(found: Prediction, targets: Targets) -> Tensor:
    """Scores, overlap and distance of matched predictions, per object."""
    count = (targets.weights > 0).sum().clamp(min=1)
    mask = targets.weights > 0
    overlap = complete_iou(found.boxes[mask], targets.boxes[mask])
    far = (found.boxes[mask] - targets.boxes[mask]).abs().sum(-1) / 320
    return (sigmoid_scores(found, targets) + 2 * (1 - overlap).sum() + 5 * far.sum()) / count
