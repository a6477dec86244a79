"""An RT-DETR-like head: encode the coarsest map, select queries by score, refine them in a small decoder, no NMS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX
from avq.scenes.train.model import LEAST_HEIGHT_PX
from tests.replicas.heads import CLASSES, RARE
from tests.replicas.loss import Prediction, one_to_one, set_loss
from tests.replicas.model import FEATURES, STRIDES_PX, grid, sizes

WIDTH, PARTS, QUERIES, LAYERS = 32, 4, 60, 2


class Attention(nn.Module):
    """Multi-head attention of plain products, as exporters write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.width = width

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            layer(x).reshape(x.shape[0], x.shape[1], PARTS, self.width // PARTS).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        weights = (q @ k.transpose(2, 3) / math.sqrt(self.width // PARTS)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(query.shape[0], query.shape[1], self.width))


class Feed(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


class EncoderLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.feed = Attention(width), Feed(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x + place, x + place, x))
        return self.norm2(x + self.feed(x))


class DecoderLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.among, self.across, self.feed = Attention(width), Attention(width), Feed(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, place: Tensor, memory: Tensor, memory_place: Tensor) -> Tensor:
        x = self.norm1(x + self.among(x + place, x + place, x))
        x = self.norm2(x + self.across(x + place, memory + memory_place, memory))
        return self.norm3(x + self.feed(x))


class BoxHead(nn.Sequential):
    def __init__(self, width: int) -> None:
        last = nn.Linear(width, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(width, width), nn.ReLU(), last)


def inverse_sigmoid(x: Tensor) -> Tensor:
    x = x.clamp(1e-4, 1 - 1e-4)
    return torch.log(x / (1 - x))


class RtDetr(nn.Module):
    """Tokens of all maps; the best by score become queries; boxes are refined layer by layer."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.encoder = EncoderLayer(FEATURES)
        self.enter = nn.ModuleList(
            nn.Sequential(nn.Conv2d(FEATURES, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))
            for _ in STRIDES_PX
        )
        self.token = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.token_class, self.token_box = nn.Linear(WIDTH, CLASSES), BoxHead(WIDTH)
        self.place = nn.Sequential(nn.Linear(4, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.layers = nn.ModuleList(DecoderLayer(WIDTH) for _ in range(LAYERS))
        self.classes = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(LAYERS))
        self.boxes = nn.ModuleList(BoxHead(WIDTH) for _ in range(LAYERS))
        for layer in (self.token_class, *self.classes):
            nn.init.constant_(layer.bias, RARE)
        points, strides = grid(0.5)
        unit = torch.tensor([INPUT_WIDTH_PX, INPUT_HEIGHT_PX]).float()
        anchors = torch.cat([points / unit, 3 * strides[:, None] / unit], 1)
        self.register_buffer("anchors", inverse_sigmoid(anchors)[None], persistent=False)
        coarse = anchors[-sizes()[-1][0] * sizes()[-1][1] :]
        self.register_buffer("coarse_place", waves(coarse[:, :2], FEATURES)[None], persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """(class logits, boxes cxcywh in 0..1) of the tokens, then of the queries layer by layer."""
        coarse = features[-1]
        tokens = self.encoder(coarse.flatten(2).transpose(1, 2), self.coarse_place)
        maps = [*features[:-1], tokens.transpose(1, 2).reshape(coarse.shape)]
        memory = torch.cat(
            [enter(x).flatten(2).transpose(1, 2) for enter, x in zip(self.enter, maps, strict=True)], 1
        )
        token = self.token(memory)
        logits, unrefined = self.token_class(token), self.token_box(token) + self.anchors
        best = logits.amax(-1).topk(QUERIES, dim=1).indices[..., None]
        x = token.gather(1, best.expand(-1, -1, WIDTH))
        reference = unrefined.gather(1, best.expand(-1, -1, 4)).detach().sigmoid()
        found = [(logits, unrefined.sigmoid())]
        memory_place = self.place(self.anchors.sigmoid())
        for layer, classes, boxes in zip(self.layers, self.classes, self.boxes, strict=True):
            x = layer(x, self.place(reference), memory, memory_place)
            refined = (boxes(x) + inverse_sigmoid(reference)).sigmoid()
            found.append((classes(x), refined))
            reference = refined.detach()
        return found

    def loss(self, raw: list[tuple[Tensor, Tensor]], boxes: Tensor, classes: Tensor) -> Tensor:
        total = torch.zeros(())
        for logits, box in raw:
            found = in_pixels(logits.float(), box.float())
            total = total + set_loss(found, one_to_one(found, boxes, classes, LEAST_HEIGHT_PX))
        return total

    def predict(self, raw: list[tuple[Tensor, Tensor]]) -> Prediction:
        return in_pixels(*raw[-1])

    def exported(self, raw: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        return raw[-1]


def in_pixels(logits: Tensor, box: Tensor) -> Prediction:
    unit = torch.tensor([INPUT_WIDTH_PX, INPUT_HEIGHT_PX] * 2).float()
    low, high = box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2
    return Prediction(torch.cat([low, high], -1) * unit, logits)


def waves(points: Tensor, width: int) -> Tensor:
    """Sine and cosine of both coordinates (N,2) in 0..1 at falling wavelengths: (N, width)."""
    each = width // 4
    rate = 2 * math.pi * 2.0 ** (torch.arange(each) * 6.0 / each)
    angles = points[:, :, None] * rate
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
