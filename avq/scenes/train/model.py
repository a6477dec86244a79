"""The built-in detector: dense 3x3 convolutions, ReLU, three strides, anchor-free.

Plain on purpose. Dense convolutions with channel counts that are multiples of 32 are what INT8 engines are fast at,
and ReLU networks without depthwise convolutions keep their accuracy at INT8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.picture import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

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
