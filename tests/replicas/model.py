"""The trunks that all replicas stand on: about 100 000 weights, three feature maps of 32 channels.

Two kinds of blocks, so that two kinds of graphs come out: residual additions, or a split and a concatenation.
The activation is a choice too, and a trained trunk takes to another one in a few hundred steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX

STRIDES_PX = (8, 16, 32)
FEATURES = 32

Activation = Literal["relu", "silu", "hardswish", "leaky"]
Kind = Literal["residual", "csp"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky": lambda: nn.LeakyReLU(0.1),
}


class Block(nn.Module):
    """Convolution, batch normalisation, activation (None: linear)."""

    def __init__(
        self, inputs: int, outputs: int, act: str | None, size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = ACTIVATIONS[act]() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Separable(nn.Sequential):
    """A depthwise and a pointwise block."""

    def __init__(self, inputs: int, outputs: int, act: str) -> None:
        super().__init__(Block(inputs, inputs, act, groups=inputs), Block(inputs, outputs, act, size=1))


class Residual(nn.Module):
    """act(x + conv(conv(x))), narrow in the middle."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.first = Block(channels, 16, act)
        self.second = Block(16, channels, None)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.first(x)))


class Csp(nn.Module):
    """Half of the channels go through a bottleneck, every stage is concatenated: YOLOv8's C2f."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        half = channels // 2
        self.half = half
        self.enter = Block(channels, channels, act, size=1)
        self.first, self.second = Block(half, half, act), Block(half, half, act)
        self.leave = Block(3 * half, channels, act, size=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, y = self.enter(x).split((self.half, self.half), 1)
        return self.leave(torch.cat([kept, y, y + self.second(self.first(y))], 1))


class Trunk(nn.Module):
    """images (B,3,192,320) in 0..1 -> maps (B,32,h,w) at strides 8, 16 and 32."""

    def __init__(self, kind: Kind, act: Activation) -> None:
        super().__init__()
        body = Residual if kind == "residual" else Csp
        self.stem = Block(3, 16, act, stride=2)
        self.stage2 = nn.Sequential(Block(16, 32, act, stride=2), body(32, act))
        self.stage3 = nn.Sequential(Block(32, 32, act, stride=2), body(32, act))
        self.stage4 = nn.Sequential(Block(32, 48, act, stride=2), body(48, act))
        self.stage5 = Block(48, FEATURES, act, stride=2)
        self.lateral4, self.lateral3 = (
            Block(48, FEATURES, None, size=1),
            Block(32, FEATURES, None, size=1),
        )
        self.act4, self.act3 = ACTIVATIONS[act](), ACTIVATIONS[act]()
        self.smooth4, self.smooth3 = Block(FEATURES, FEATURES, act), Block(FEATURES, FEATURES, act)

    def forward(self, images: Tensor) -> list[Tensor]:
        c3 = self.stage3(self.stage2(self.stem(images)))
        c4 = self.stage4(c3)
        p5 = self.stage5(c4)
        p4 = self.smooth4(self.act4(self.lateral4(c4) + _doubled(p5)))
        p3 = self.smooth3(self.act3(self.lateral3(c3) + _doubled(p4)))
        return [p3, p4, p5]


def _doubled(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2.0)


def sizes() -> list[tuple[int, int, int]]:
    """(height, width, stride_px) of the three maps."""
    return [(INPUT_HEIGHT_PX // s, INPUT_WIDTH_PX // s, s) for s in STRIDES_PX]


def grid(offset_cells: float, anchors: int = 1) -> tuple[Tensor, Tensor]:
    """Points (N,2) in pixels and strides (N,): map by map, row by row, ``anchors`` equal rows per cell."""
    points, strides = [], []
    for height, width, stride in sizes():
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        cells = (torch.stack([x.flatten(), y.flatten()], 1) + offset_cells) * stride
        points.append(cells.float().repeat_interleave(anchors, 0))
        strides.append(torch.full((len(cells) * anchors,), float(stride)))
    return torch.cat(points), torch.cat(strides)
