"""Small networks with the heads that families export, under random names."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from avq.builder.graph.model import FloatModel, normalise

HEIGHT, WIDTH = 64, 128


class Net:
    """Builds a graph node by node; every tensor and node gets a random name."""

    def __init__(self, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> None:
        self.names = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.height, self.width = height, width
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.domains: set[str] = set()
        self.input = self.name()

    def name(self) -> str:
        return f"x{self.names.getrandbits(40):010x}"

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [self.name() for _ in range(outputs)]
        if domain:
            self.domains.add(domain)
        self.nodes.append(
            helper.make_node(kind, list(inputs), names, name=self.name(), domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def conv(
        self, x: str, inputs: int, outputs: int, stride: int = 1, bias: float = 0.0, size: int = 1
    ) -> str:
        weight = self.rng.normal(0, 1.0 / np.sqrt(inputs * size * size), (outputs, inputs, size, size))
        return self.op(
            "Conv", x, self.const(weight), self.const(np.full(outputs, bias) + self.rng.normal(0, 0.5, outputs)),
            kernel_shape=[size, size], strides=[stride, stride],
        )  # fmt: skip

    def levels(self, strides: tuple[int, ...] = (8, 16, 32)) -> list[tuple[str, int, int, int]]:
        """(feature tensor, height, width, stride) with 8 channels each."""
        x = self.op("Relu", self.conv(self.input, 3, 8, stride=strides[0], size=strides[0]))
        found, last = [], strides[0]
        for stride in strides:
            while last < stride:
                x = self.op("Relu", self.conv(x, 8, 8, stride=2, size=2))
                last *= 2
            found.append((x, self.height // stride, self.width // stride, stride))
        return found

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.const(shape, np.int64))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.op("Slice", x, *(self.const([v], np.int64) for v in (start, stop, axis, 1)))

    def model(
        self, *outputs: str, metadata: dict[str, str] | None = None, kinds: dict[str, int] | None = None
    ) -> Any:
        picture = helper.make_tensor_value_info(
            self.input, TensorProto.FLOAT, [1, 3, self.height, self.width]
        )
        declared = [
            helper.make_tensor_value_info(o, (kinds or {}).get(o, TensorProto.FLOAT), None) for o in outputs
        ]
        graph = helper.make_graph(self.nodes, self.name(), [picture], declared, self.weights)
        opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 1) for d in sorted(self.domains))]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        helper.set_model_props(model, metadata or {})
        return model


def load(model: onnx.ModelProto) -> FloatModel:
    return normalise(model)


def run(model: FloatModel, seed: int = 1) -> dict[str, np.ndarray]:
    """Raw outputs for a random picture."""
    session = onnxruntime.InferenceSession(
        model.proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    picture = np.random.default_rng(seed).random(model.view.inputs[0].shape, np.float32)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {model.view.inputs[0].name: picture}), strict=True))


def cells(levels: list[tuple[str, int, int, int]]) -> list[tuple[int, int, int]]:
    """(gx, gy, stride) of every cell, level by level, row by row."""
    return [(x, y, s) for _, h, w, s in levels for y in range(h) for x in range(w)]


def yolox(
    seed: int,
    classes: int,
    *,
    decoded: bool = False,
    coarse_first: bool = False,
    metadata: dict[str, str] | None = None,
) -> Any:
    net = Net(seed)
    levels = net.levels()[::-1] if coarse_first else net.levels()
    parts = []
    for x, h, w, _ in levels:
        box, objectness, scores = net.conv(x, 8, 4), net.conv(x, 8, 1), net.conv(x, 8, classes)
        joined = net.op("Concat", box, net.op("Sigmoid", objectness), net.op("Sigmoid", scores), axis=1)
        parts.append(net.reshape(joined, 1, 5 + classes, h * w))
    out = net.op("Transpose", net.op("Concat", *parts, axis=2), perm=[0, 2, 1])
    if decoded:
        grid = np.array(cells(levels), np.float32)[None]
        stride = net.const(grid[..., 2:])
        xy = net.op("Mul", net.op("Add", net.slice(out, 2, 0, 2), net.const(grid[..., :2])), stride)
        wh = net.op("Mul", net.op("Exp", net.slice(out, 2, 2, 4)), stride)
        out = net.op("Concat", xy, wh, net.slice(out, 2, 4, 5 + classes), axis=-1)
    return load(net.model(out, metadata=metadata)), levels


ANCHORS = [
    [(10, 13), (16, 30), (33, 23)],
    [(30, 61), (62, 45), (59, 119)],
    [(116, 90), (156, 198), (373, 326)],
]


def yolov5(seed: int, classes: int) -> Any:
    net = Net(seed)
    levels = net.levels()
    features, parts = 5 + classes, []
    for (x, h, w, s), anchors in zip(levels, ANCHORS, strict=True):
        y = net.reshape(net.conv(x, 8, 3 * features), 1, 3, features, h, w)
        y = net.op("Sigmoid", net.op("Transpose", y, perm=[0, 1, 3, 4, 2]))
        grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).astype(np.float32)[None, None] - 0.5
        xy, wh, rest = net.op("Split", y, net.const([2, 2, 1 + classes], np.int64), outputs=3, axis=4)
        xy = net.op(
            "Mul", net.op("Add", net.op("Mul", xy, net.const(2.0)), net.const(grid)), net.const(float(s))
        )
        wh = net.op("Pow", net.op("Mul", wh, net.const(2.0)), net.const(2.0))
        wh = net.op("Mul", wh, net.const(np.array(anchors, np.float32).reshape(1, 3, 1, 1, 2)))
        parts.append(net.reshape(net.op("Concat", xy, wh, rest, axis=4), 1, 3 * h * w, features))
    return load(net.model(net.op("Concat", *parts, axis=1))), levels


def yolov5_raw(seed: int, classes: int, *, five_axes: bool, sigmoid: bool = False) -> Any:
    net = Net(seed)
    levels = net.levels()
    features, outputs = 5 + classes, []
    for x, h, w, _ in levels:
        y = net.conv(x, 8, 3 * features)
        if five_axes:
            y = net.op("Transpose", net.reshape(y, 1, 3, features, h, w), perm=[0, 1, 3, 4, 2])
        outputs.append(net.op("Sigmoid", y) if sigmoid else y)
    names = str({i: f"thing {i}" for i in range(classes)})
    return load(net.model(*reversed(outputs), metadata={"names": names})), levels


def yolov8_maps(
    seed: int, classes: int, *, keypoints: int = 0, rows: bool = False, metadata: dict[str, str] | None = None
) -> Any:
    """YOLOv8 before its decoding: 64 bins, class scores and keypoints per cell, as maps or as joined rows."""
    net = Net(seed)
    outputs = []
    for x, h, w, _ in net.levels():
        parts = [net.conv(x, 8, size) for size in (64, classes, keypoints) if size]
        out = net.op("Concat", *parts, axis=1)
        outputs.append(net.reshape(out, 1, 64 + classes + keypoints, h * w) if rows else out)
    if rows:
        outputs = [net.op("Transpose", net.op("Concat", *outputs, axis=2), perm=[0, 2, 1])]
    return load(net.model(*outputs, metadata=metadata))


def yolov5_face(seed: int, classes: int, landmarks: int) -> Any:
    """YOLOv5-face: rows of cx, cy, w, h, objectness, landmarks in pixels, class scores."""
    net = Net(seed)
    parts, features = [], 5 + landmarks + classes
    for x, h, w, s in net.levels():
        y = net.reshape(net.conv(x, 8, 3 * features), 1, 3, features, h, w)
        y = net.op("Transpose", y, perm=[0, 1, 3, 4, 2])
        box, points, scores = net.op(
            "Split", y, net.const([5, landmarks, classes], np.int64), outputs=3, axis=4
        )
        box, scores = net.op("Sigmoid", box), net.op("Sigmoid", scores)
        xy, wh, objectness = net.op("Split", box, net.const([2, 2, 1], np.int64), outputs=3, axis=4)
        xy, wh = net.op("Mul", xy, net.const(2.0 * s)), net.op("Mul", wh, net.const(4.0 * s))
        points = net.op("Mul", points, net.const(float(s)))
        joined = net.op("Concat", xy, wh, objectness, points, scores, axis=4)
        parts.append(net.reshape(joined, 1, 3 * h * w, features))
    return load(net.model(net.op("Concat", *parts, axis=1)))


def yolov6(seed: int, classes: int) -> Any:
    net = Net(seed)
    levels = net.levels()
    boxes, scores = [], []
    for x, h, w, _ in levels:
        boxes.append(net.reshape(net.conv(x, 8, 4), 1, 4, h * w))
        scores.append(net.reshape(net.op("Sigmoid", net.conv(x, 8, classes)), 1, classes, h * w))
    distances = net.op("Transpose", net.op("Concat", *boxes, axis=2), perm=[0, 2, 1])
    rows = net.op("Transpose", net.op("Concat", *scores, axis=2), perm=[0, 2, 1])
    grid = np.array(cells(levels), np.float32)[None]
    points = net.const(grid[..., :2] + 0.5)
    left_top, right_bottom = net.op("Split", distances, outputs=2, axis=2)
    low, high = net.op("Sub", points, left_top), net.op("Add", points, right_bottom)
    centre = net.op("Div", net.op("Add", low, high), net.const(2.0))
    box = net.op("Concat", centre, net.op("Sub", high, low), axis=2)
    box = net.op("Mul", box, net.const(grid[..., 2:]))
    out = net.op("Concat", box, net.const(np.ones((1, len(grid[0]), 1))), rows, axis=2)
    return load(net.model(out)), levels


def yolov8(seed: int, classes: int, *, rows: bool = False, metadata: dict[str, str] | None = None) -> Any:
    net = Net(seed)
    levels = net.levels()
    parts = []
    for x, h, w, _ in levels:
        joined = net.op("Concat", net.conv(x, 8, 64), net.conv(x, 8, classes), axis=1)
        parts.append(net.reshape(joined, 1, 64 + classes, h * w))
    grid = np.array(cells(levels), np.float32)
    count = len(grid)
    sides, scores = net.op(
        "Split", net.op("Concat", *parts, axis=2), net.const([64, classes], np.int64), outputs=2, axis=1
    )
    bins = net.op("Transpose", net.reshape(sides, 1, 4, 16, count), perm=[0, 2, 1, 3])
    weight = net.const(np.arange(16).reshape(1, 16, 1, 1))
    distances = net.reshape(net.op("Conv", net.op("Softmax", bins, axis=1), weight), 1, 4, count)
    points = net.const((grid[:, :2] + 0.5).T[None])
    low = net.op("Sub", points, net.slice(distances, 1, 0, 2))
    high = net.op("Add", points, net.slice(distances, 1, 2, 4))
    centre = net.op("Div", net.op("Add", low, high), net.const(2.0))
    box = net.op(
        "Mul", net.op("Concat", centre, net.op("Sub", high, low), axis=1), net.const(grid[None, None, :, 2])
    )
    out = net.op("Concat", box, net.op("Sigmoid", scores), axis=1)
    if rows:
        out = net.op("Transpose", out, perm=[0, 2, 1])
    return load(net.model(out, metadata=metadata)), levels


def gfl(seed: int, classes: int, style: str, bins: int = 8) -> Any:
    """style: nanodet (three pairs), plus (one output, four levels), picodet (four pairs, channels first)."""
    net = Net(seed)
    levels = net.levels((8, 16, 32) if style == "nanodet" else (8, 16, 32, 64))
    first, second = [], []
    for x, h, w, _ in levels:
        y = net.conv(x, 8, classes + 4 * bins)
        scores, sides = net.op("Split", y, net.const([classes, 4 * bins], np.int64), outputs=2, axis=1)
        scores = net.op("Sigmoid", scores)
        if style == "plus":
            first.append(net.reshape(net.op("Concat", scores, sides, axis=1), 1, classes + 4 * bins, h * w))
        elif style == "picodet":
            first.append(scores)
            second.append(sides)
        else:
            for rows, out, size in ((scores, first, classes), (sides, second, 4 * bins)):
                out.append(net.op("Transpose", net.reshape(rows, 1, size, h * w), perm=[0, 2, 1]))
    if style == "plus":
        return load(net.model(net.op("Transpose", net.op("Concat", *first, axis=2), perm=[0, 2, 1]))), levels
    return load(net.model(*first, *second)), levels


def yolov8_raw(seed: int, classes: int, *, joined: bool) -> Any:
    """YOLOv8 cut before its decoding: one map of 64 + C channels per level, or distances and scores apart."""
    net = Net(seed)
    levels = net.levels()
    outputs: list[str] = []
    for x, _, _, _ in levels:
        box, scores = net.conv(x, 8, 64), net.conv(x, 8, classes)
        outputs += [net.op("Concat", box, scores, axis=1)] if joined else [box, net.op("Sigmoid", scores)]
    return load(net.model(*outputs)), levels


def retinanet(seed: int, classes: int, *, joined: bool) -> Any:
    net = Net(seed)
    levels = net.levels()
    scores: list[Any] = []
    boxes: list[Any] = []
    for x, h, w, _ in levels:
        for out, size in ((scores, classes), (boxes, 4)):
            y = net.conv(x, 8, 9 * size)
            if joined:
                y = net.op("Transpose", net.reshape(y, 1, 9, size, h, w), perm=[0, 3, 4, 1, 2])
                y = net.reshape(y, 1, h * w * 9, size)
            out.append(y)
    if joined:
        scores, boxes = [net.op("Concat", *scores, axis=1)], [net.op("Concat", *boxes, axis=1)]
    return load(net.model(*scores, *boxes)), levels


def boxes_and_scores(seed: int, classes: int, *, softmax: bool = False) -> Any:
    """The built-in detector's head; with ``softmax`` an SSD head, background first, boxes in 0..1."""
    net = Net(seed)
    levels = net.levels()
    flat: dict[int, list[str]] = {4: [], classes: []}
    for x, h, w, _ in levels:
        for size, out in flat.items():
            out.append(net.reshape(net.conv(x, 8, size), 1, size, h * w))
    offsets, scores = (
        net.op("Transpose", net.op("Concat", *out, axis=2), perm=[0, 2, 1]) for out in flat.values()
    )
    grid = np.array(cells(levels), np.float32)[None]
    if softmax:
        scale = np.array([WIDTH, HEIGHT], np.float32)
        centres = (grid[..., :2] + 0.5) * grid[..., 2:] / scale
        sizes = net.const(4 * grid[..., 2:] / scale)
        xy = net.op("Add", net.op("Mul", net.slice(offsets, 2, 0, 2), sizes), net.const(centres))
        half = net.op("Div", net.op("Mul", net.op("Exp", net.slice(offsets, 2, 2, 4)), sizes), net.const(2.0))
        box = net.op("Concat", net.op("Sub", xy, half), net.op("Add", xy, half), axis=2)
        box = net.op("Clip", box, net.const(0.0), net.const(1.0))
        return load(net.model(box, net.op("Softmax", scores, axis=2))), levels
    points = np.concatenate([(grid[..., :2] + 0.5) * grid[..., 2:]] * 2, axis=2)
    box = net.op("Add", net.op("Mul", offsets, net.const(grid[..., 2:])), net.const(points))
    return load(net.model(box, net.op("Sigmoid", scores))), levels


def end_to_end(seed: int, classes: int, most: int = 20, columns: str = "box score class") -> Any:
    """YOLOv10: (1, K, 6) rows of x0, y0, x1, y1, score, class after a top-k; or with other columns.

    "batch" is the picture's index as YOLOv7 writes it, "angle" turns a box.
    """
    net = Net(seed)
    levels = net.levels()
    flat: dict[int, list[str]] = {4: [], classes: []}
    for x, h, w, _ in levels:
        for size, out in flat.items():
            out.append(net.reshape(net.conv(x, 8, size), 1, size, h * w))
    sides, scores = (net.op("Transpose", net.op("Concat", *o, axis=2), perm=[0, 2, 1]) for o in flat.values())
    grid = np.array(cells(levels), np.float32)[None]
    low, high = net.op("Split", sides, outputs=2, axis=2)
    points = net.const(grid[..., :2] + 0.5)
    box = net.op("Concat", net.op("Sub", points, low), net.op("Add", points, high), axis=2)
    box = net.op("Mul", box, net.const(grid[..., 2:]))
    scores = net.op("Sigmoid", scores)
    best = net.op("ReduceMax", scores, axes=[2], keepdims=0)
    top, index = net.op("TopK", best, net.const([most], np.int64), outputs=2, axis=1)
    rows = net.op("Unsqueeze", index, net.const([2], np.int64))
    box = net.op("GatherND", box, rows, batch_dims=1)
    label = net.op("ArgMax", net.op("GatherND", scores, rows, batch_dims=1), axis=2, keepdims=1)
    angles = [net.reshape(net.conv(x, 8, 1), 1, h * w, 1) for x, h, w, _ in levels]
    nought = net.op("Mul", label, net.const(0, np.int64))
    parts = {
        "box": box,
        "score": net.op("Unsqueeze", top, net.const([2], np.int64)),
        "class": net.op("Cast", label, to=TensorProto.FLOAT),
        "batch": net.op("Cast", nought, to=TensorProto.FLOAT),
        "angle": net.op("GatherND", net.op("Concat", *angles, axis=1), rows, batch_dims=1),
    }
    return load(net.model(net.op("Concat", *(parts[name] for name in columns.split()), axis=2))), levels


def suppressed(seed: int, classes: int, *, style: str, refined: bool = False) -> Any:
    """NonMaxSuppression in the graph. style: triplets (indices with all boxes and scores), lists (torchvision).

    ``refined`` moves the boxes once more, by deltas in tenths of their size, and clips them (Faster R-CNN).
    """
    net = Net(seed)
    levels = net.levels()
    flat: dict[int, list[str]] = {4: [], classes: []}
    for x, h, w, _ in levels:
        for size, out in flat.items():
            out.append(net.reshape(net.conv(x, 8, size), 1, size, h * w))
    sides = net.op("Transpose", net.op("Concat", *flat[4], axis=2), perm=[0, 2, 1])
    scores = net.op("Sigmoid", net.op("Concat", *flat[classes], axis=2))
    grid = np.array(cells(levels), np.float32)[None]
    points = np.concatenate([(grid[..., :2] + 0.5) * grid[..., 2:]] * 2, axis=2)
    spread = np.concatenate([-grid[..., 2:]] * 2 + [grid[..., 2:]] * 2, axis=2)
    boxes = net.op("Add", net.op("Mul", net.op("Exp", sides), net.const(spread)), net.const(points))
    if refined:
        boxes = _refined(net, boxes, levels)
    limits = (net.const([10], np.int64), net.const([0.5]), net.const([0.3]))
    picked = net.op("NonMaxSuppression", boxes, scores, *limits)
    if style == "triplets":
        return load(net.model(picked, boxes, scores, kinds={picked: TensorProto.INT64})), levels
    label, row = (net.op("Squeeze", net.slice(picked, 1, i, i + 1), net.const([1], np.int64)) for i in (1, 2))
    flat_boxes = net.op("Gather", net.reshape(boxes, -1, 4), row, axis=0)
    place = net.op(
        "Concat", *(net.op("Unsqueeze", v, net.const([1], np.int64)) for v in (label, row)), axis=1
    )
    kept = net.op("GatherND", net.reshape(scores, classes, -1), place)
    return load(net.model(flat_boxes, kept, label, kinds={label: TensorProto.INT64})), levels


def _refined(net: Net, boxes: str, levels: list[tuple[str, int, int, int]]) -> str:
    """Boxes moved and scaled by a second set of deltas, in tenths of their size, and clipped to the picture."""
    parts = [net.reshape(net.conv(x, 8, 4), 1, 4, h * w) for x, h, w, _ in levels]
    deltas = net.op("Transpose", net.op("Concat", *parts, axis=2), perm=[0, 2, 1])
    shift, growth = net.op("Split", net.op("Div", deltas, net.const(10.0)), outputs=2, axis=2)
    low, half = net.slice(boxes, 2, 0, 2), net.const(0.5)
    size = net.op("Sub", net.slice(boxes, 2, 2, 4), low)
    centre = net.op("Add", net.op("Mul", shift, size), net.op("Add", low, net.op("Mul", size, half)))
    reach = net.op("Mul", net.op("Mul", size, net.op("Exp", growth)), half)
    corners = net.op("Sub", centre, reach), net.op("Add", centre, reach)
    moved = net.op("Concat", *corners, axis=2)
    sides = []
    for first, most in ((0, WIDTH), (1, HEIGHT)):
        side = net.op("Gather", moved, net.const([first, first + 2], np.int64), axis=2)
        sides.append(net.op("Clip", side, net.const(0.0), net.const(most)))
    return net.op("Gather", net.op("Concat", *sides, axis=2), net.const([0, 2, 1, 3], np.int64), axis=2)


def queries(seed: int, classes: int, *, joined: bool, sigmoid: bool, most: int = 20) -> Any:
    """RT-DETR: query features to boxes through a sigmoid (cx, cy, w, h in 0..1) and class scores."""
    net = Net(seed)
    levels = net.levels()
    x, h, w, _ = levels[0]
    rows = net.op("Transpose", net.reshape(x, 1, 8, h * w), perm=[0, 2, 1])
    rows = net.slice(rows, 1, 0, most)
    out = []
    for size in (4, classes):
        weight = net.const(net.rng.normal(0, 0.5, (8, size)))
        out.append(net.op("Add", net.op("MatMul", rows, weight), net.const(net.rng.normal(0, 0.5, size))))
    box = net.op("Sigmoid", out[0])
    scores = net.op("Sigmoid", out[1]) if sigmoid else out[1]
    return load(
        net.model(net.op("Concat", box, scores, axis=2)) if joined else net.model(scores, box)
    ), levels


def query_rows(seed: int, classes: int, most: int = 20) -> Any:
    """RT-DETR with its top-k in the graph: (1, K, 6) rows of cx, cy, w, h in 0..1, score, class."""
    net = Net(seed)
    x, h, w, _ = net.levels()[0]
    rows = net.op("Transpose", net.reshape(x, 1, 8, h * w), perm=[0, 2, 1])
    box, scores = (
        net.op("Sigmoid", net.op("MatMul", rows, net.const(net.rng.normal(0, 0.5, (8, size)))))
        for size in (4, classes)
    )
    top, index = net.op("TopK", net.op("Flatten", scores), net.const([most], np.int64), outputs=2, axis=1)
    count = net.const(classes, np.int64)
    query = net.op("Div", index, count)
    label = net.op("Sub", index, net.op("Mul", query, count))
    last = net.const([2], np.int64)
    four = net.op("Expand", net.op("Unsqueeze", query, last), net.const([1, most, 4], np.int64))
    parts = [net.op("GatherElements", box, four, axis=1), net.op("Unsqueeze", top, last)]
    parts.append(net.op("Cast", net.op("Unsqueeze", label, last), to=TensorProto.FLOAT))
    return load(net.model(net.op("Concat", *parts, axis=2))), [(x, h, w, 8)]


def efficient_nms(seed: int, classes: int, most: int = 100) -> Any:
    """TensorRT's plugin: num_dets (1, 1), boxes (1, K, 4), scores (1, K), classes (1, K)."""
    net = Net(seed)
    x, h, w, _ = net.levels()[0]
    boxes = net.op("Transpose", net.reshape(net.conv(x, 8, 4), 1, 4, h * w), perm=[0, 2, 1])
    scores = net.op("Transpose", net.reshape(net.conv(x, 8, classes), 1, classes, h * w), perm=[0, 2, 1])
    names = net.op("EfficientNMS_TRT", boxes, scores, outputs=4, domain="TRT")
    model = net.model(*names)
    shapes = [(TensorProto.INT32, [1, 1]), (1, [1, most, 4]), (1, [1, most]), (TensorProto.INT32, [1, most])]
    for value, (kind, shape) in zip(model.graph.output, shapes, strict=True):
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))
    return load(model)
