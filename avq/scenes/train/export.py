"""Write the trained network as ONNX node by node, without tracing; restore weights from an exported file."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from avq.atomic_file import atomic_write
from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX, PAD_VALUE, Batch
from avq.scenes.train.model import STRIDES_PX, ConvBlock, Head, Residual, RoadDetector

OPSET = 17

PREPROCESS = {
    "width_px": INPUT_WIDTH_PX,
    "height_px": INPUT_HEIGHT_PX,
    "resize": "letterbox",
    "anchor": "top-left",
    "pad_value": PAD_VALUE,
    "channel_order": "BGR",
    "scale": 1 / 255,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
}


class GraphWriter:
    """Collects nodes and initializers; every method returns the name of the tensor it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(self, x: str, name: str, weight: torch.Tensor, bias: torch.Tensor, stride: int = 1) -> str:
        size = weight.shape[-1]
        inputs = [
            x,
            self.constant(f"{name}.weight", weight.numpy()),
            self.constant(f"{name}.bias", bias.numpy()),
        ]
        pad = size // 2
        return self.node(
            "Conv", inputs, name, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4
        )

    def block(self, x: str, name: str, block: ConvBlock) -> str:
        weight, bias = fold_norm(block)
        y = self.conv(x, f"{name}.conv", weight, bias, block.conv.stride[0])
        return y if block.linear else self.node("Relu", [y], f"{name}.relu")

    def residual(self, x: str, name: str, block: Residual) -> str:
        y = self.block(self.block(x, f"{name}.first", block.first), f"{name}.second", block.second)
        return self.node("Relu", [self.node("Add", [x, y], f"{name}.add")], f"{name}.relu")

    def sequence(self, x: str, name: str, blocks: nn.Module) -> str:
        for index, block in enumerate(blocks.children()):
            one = f"{name}.{index}"
            x = self.residual(x, one, block) if isinstance(block, Residual) else self.block(x, one, block)
        return x

    def merge(self, fine: str, coarse: str, name: str, lateral: ConvBlock, smooth: ConvBlock) -> str:
        """smooth(relu(lateral(fine) + upsampled coarse)): one step down the pyramid."""
        scales = self.constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32))
        up = self.node(
            "Resize",
            [coarse, "", scales],
            f"{name}.resize",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        added = self.node("Add", [self.block(fine, f"{name}.lateral", lateral), up], f"{name}.add")
        return self.block(self.node("Relu", [added], f"{name}.relu"), f"{name}.smooth", smooth)


def fold_norm(block: ConvBlock) -> tuple[torch.Tensor, torch.Tensor]:
    """The convolution's weight and bias with the batch normalisation folded in, float32."""
    norm = block.norm
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = block.conv.weight.double() * gain[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * gain
    return weight.float(), bias.float()


def heads(graph: GraphWriter, model: RoadDetector, features: list[str]) -> None:
    """Both branches of every stride, joined into `boxes` (1,N,4) and `scores` (1,N,5)."""
    flat: dict[str, list[str]] = {"box": [], "class": []}
    for head, stride, feature in zip(model.heads, STRIDES_PX, features, strict=True):
        assert isinstance(head, Head)
        cells = (INPUT_HEIGHT_PX // stride) * (INPUT_WIDTH_PX // stride)
        shared = graph.block(feature, f"head{stride}.block", head.block)
        for kind, out in (("box", head.box_out), ("class", head.class_out)):
            name = f"head{stride}.{kind}"
            assert out.bias is not None
            y = graph.conv(shared, f"{name}_out", out.weight, out.bias)
            shape = graph.constant(f"{name}_shape", np.array([1, out.out_channels, cells], np.int64))
            flat[kind].append(graph.node("Reshape", [y, shape], f"{name}_flat"))
    scores = graph.node("Concat", flat["class"], "class_logits", axis=2)
    scores = graph.node("Transpose", [scores], "class_rows", perm=[0, 2, 1])
    graph.node("Sigmoid", [scores], "scores")
    offsets = graph.node("Concat", flat["box"], "box_offsets", axis=2)
    offsets = graph.node("Transpose", [offsets], "box_rows", perm=[0, 2, 1])
    strides = graph.constant("box_strides", model.point_strides.numpy().reshape(1, -1, 1))
    centres = torch.cat([model.points, model.points], 1).numpy()[None]
    scaled = graph.node("Mul", [offsets, strides], "box_scaled")
    graph.node("Add", [scaled, graph.constant("box_points", centres)], "boxes")


def write_graph(model: RoadDetector) -> GraphWriter:
    """All nodes, from `images` to `boxes` and `scores`."""
    graph = GraphWriter()
    x = graph.block("images", "stem", model.stem)
    c3 = graph.sequence(graph.sequence(x, "stage2", model.stage2), "stage3", model.stage3)
    c4 = graph.sequence(c3, "stage4", model.stage4)
    p5 = graph.block(c4, "stage5", model.stage5)
    p4 = graph.merge(c4, p5, "merge4", model.lateral4, model.smooth4)
    p3 = graph.merge(c3, p4, "merge3", model.lateral3, model.smooth3)
    heads(graph, model, [p3, p4, p5])
    return graph


def to_onnx(model: RoadDetector) -> onnx.ModelProto:
    """The evaluation-mode network with folded normalisation and the two metadata entries."""
    with torch.no_grad():
        graph = write_graph(model)
    count = int(model.points.shape[0])
    proto = helper.make_graph(
        graph.nodes,
        "avq_road_detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, INPUT_HEIGHT_PX, INPUT_WIDTH_PX])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, count, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, count, len(CLASS_NAMES)]),
        ],
        graph.initializers,
    )
    onnx_model = helper.make_model(
        proto, producer_name="avq.scenes.train", opset_imports=[helper.make_opsetid("", OPSET)]
    )
    onnx_model.ir_version = 8
    metadata = {"names": json.dumps(list(CLASS_NAMES)), "avq.preprocess": json.dumps(PREPROCESS)}
    helper.set_model_props(onnx_model, metadata)
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model


def write_onnx(model: RoadDetector, path: pathlib.Path) -> None:
    """A reader never sees half a file. Raises DataError when it cannot be written."""
    atomic_write(path, to_onnx(model).SerializeToString())


# Restore from an exported file: its folded weights are spread out over convolutions and normalisations
# again.

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
