"""Going on from an exported file: its folded weights are spread out over convolutions and normalisations again."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from avq.scenes.train.data import Batch
from avq.scenes.train.model import ConvBlock, RoadDetector

# Graph names differ from module names only where the graph merges.
_RENAMED = {
    "merge4.lateral": "lateral4",
    "merge3.lateral": "lateral3",
    "merge4.smooth": "smooth4",
    "merge3.smooth": "smooth3",
}
_HEADS = {"head8": "heads.0", "head16": "heads.1", "head32": "heads.2"}


def restore(model: RoadDetector, path: pathlib.Path, batches: Iterable[Batch]) -> None:
    """Loads ``path`` into ``model``; ``batches`` (a few are enough) give every normalisation its statistics."""
    weights = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer
    }
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, ConvBlock):
                _load_block(module, weights, _graph_name(name) + ".conv")
            elif isinstance(module, nn.Conv2d) and name.endswith("_out"):
                head, kind = _graph_name(name).rsplit(".", 1)
                module.weight.copy_(weights[f"{head}.{kind}.weight"])
                module.bias.copy_(weights[f"{head}.{kind}.bias"])
        _spread(model, batches)


def _graph_name(name: str) -> str:
    for graph, module in (*_RENAMED.items(), *_HEADS.items()):
        if name == module or name.startswith(module + "."):
            return graph + name[len(module) :]
    return name


def _load_block(block: ConvBlock, weights: dict[str, Tensor], name: str) -> None:
    """The folded convolution with a normalisation that only adds the bias."""
    norm = block.norm
    block.conv.weight.copy_(weights[f"{name}.weight"])
    norm.weight.fill_(1.0)
    norm.bias.copy_(weights[f"{name}.bias"])
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)


def _spread(model: RoadDetector, batches: Iterable[Batch]) -> None:
    """Measures what enters every normalisation and lets it undo exactly that."""
    sums: dict[nn.BatchNorm2d, list[Tensor]] = {}

    def record(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()
        sums.setdefault(norm, []).append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(record) for norm in norms]
    model.eval()
    for batch in batches:
        model(batch.images)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean, square = torch.stack(sums[norm]).mean(0)
        variance = (square - mean.square()).clamp(min=1e-8)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.bias.add_(mean)
        norm.weight.copy_(torch.sqrt(variance + norm.eps))
