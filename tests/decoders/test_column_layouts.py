"""Heads with more or other columns than the published ones: decoded right or refused, never misread."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from avq.decoders import find_decoder, recognise
from avq.errors import ModelError
from tests.decoders.head_replicas import HEIGHT, WIDTH, Net, cells, load, run
from tests.decoders.test_decode import same

SCORE = 0.3
CLASSES = 3


def flat(net: Net, levels: list[tuple[str, int, int, int]], size: int) -> str:
    """One convolution per level, joined: (1, size, cells)."""
    return str(
        net.op(
            "Concat", *[net.reshape(net.conv(x, 8, size), 1, size, h * w) for x, h, w, _ in levels], axis=2
        )
    )


def geometry(net: Net, sides: str, grid: np.ndarray, how: str) -> tuple[str, str, str, str]:
    """Corners low and high, centre and size, in pixels, (1, N, 2) each; how: distances, exponential, sigmoid."""
    points, strides = grid[..., :2], net.const(grid[..., 2:])
    first, second = net.slice(sides, 2, 0, 2), net.slice(sides, 2, 2, 4)
    if how == "distances":
        centre = net.const((points + 0.5) * grid[..., 2:])
        low = net.op("Sub", centre, net.op("Mul", net.op("Relu", first), strides))
        high = net.op("Add", centre, net.op("Mul", net.op("Relu", second), strides))
        return low, high, net.op("Div", net.op("Add", low, high), net.const(2.0)), net.op("Sub", high, low)
    if how == "exponential":
        xy = net.op("Mul", net.op("Add", first, net.const(points)), strides)
        wh = net.op("Mul", net.op("Exp", second), strides)
    else:
        first, second = net.op("Sigmoid", first), net.op("Sigmoid", second)
        xy = net.op(
            "Mul", net.op("Add", net.op("Mul", first, net.const(2.0)), net.const(points - 0.5)), strides
        )
        wh = net.op("Mul", net.op("Pow", net.op("Mul", second, net.const(2.0)), net.const(2.0)), strides)
    half = net.op("Div", wh, net.const(2.0))
    return net.op("Sub", xy, half), net.op("Add", xy, half), xy, wh


def table(seed: int, columns: Sequence[str], form: str, how: str, *, selection: str, unit: bool) -> Any:
    """A table of a few boxes whose columns are in that order.

    form: xyxy, cxcywh, or xywh with the corner. selection: "nms" takes class and picture from the rows of
    NonMaxSuppression, "top" computes both after a top-k. unit: boxes in 0..1.
    """
    net = Net(seed)
    levels = net.levels()
    sides = net.op("Transpose", flat(net, levels, 4), perm=[0, 2, 1])
    scores = net.op("Sigmoid", flat(net, levels, CLASSES))
    low, high, centre, size = geometry(net, sides, np.array(cells(levels), np.float32)[None], how)
    corners = net.op("Concat", low, high, axis=2)
    box = {"xyxy": (low, high), "cxcywh": (centre, size), "xywh": (low, size)}[form]
    joined = net.op("Concat", *box, axis=2)
    if unit:
        joined = net.op("Div", joined, net.const([WIDTH, HEIGHT, WIDTH, HEIGHT]))
    select = _by_suppression if selection == "nms" else _by_top
    parts = select(net, corners, joined, scores)
    return load(net.model(net.op("Concat", *(parts[name] for name in columns), axis=-1)))


def _by_suppression(net: Net, corners: str, box: str, scores: str) -> dict[str, str]:
    limits = net.const([10], np.int64), net.const([0.9]), net.const([0.05])
    picked = net.op("NonMaxSuppression", corners, scores, *limits)
    batch, label, row = (net.slice(picked, 1, index, index + 1) for index in range(3))
    last = net.const([1], np.int64)
    place = net.op("Concat", label, row, axis=1)
    return {
        "box": net.op("Gather", net.reshape(box, -1, 4), net.op("Squeeze", row, last), axis=0),
        "score": net.op("Unsqueeze", net.op("GatherND", net.reshape(scores, CLASSES, -1), place), last),
        "class": net.op("Cast", label, to=TensorProto.FLOAT),
        "batch": net.op("Cast", batch, to=TensorProto.FLOAT),
    }


def _by_top(net: Net, corners: str, box: str, scores: str) -> dict[str, str]:
    rows = net.op("Transpose", scores, perm=[0, 2, 1])
    best = net.op("ReduceMax", rows, axes=[2], keepdims=0)
    top, index = net.op("TopK", best, net.const([20], np.int64), outputs=2, axis=1)
    place, last = net.op("Unsqueeze", index, net.const([2], np.int64)), net.const([2], np.int64)
    label = net.op("ArgMax", net.op("GatherND", rows, place, batch_dims=1), axis=2, keepdims=1)
    nought = net.op("Mul", label, net.const(0, np.int64))
    return {
        "box": net.op("GatherND", box, place, batch_dims=1),
        "score": net.op("Unsqueeze", top, last),
        "class": net.op("Cast", label, to=TensorProto.FLOAT),
        "batch": net.op("Cast", nought, to=TensorProto.FLOAT),
    }


def rows_of(
    out: np.ndarray, columns: Sequence[str], form: str, unit: bool
) -> list[tuple[int, float, list[float]]]:
    """What a table says, read with its true order."""
    names = [name for part in columns for name in ([part] * 4 if part == "box" else [part])]
    first, score, label = (names.index(name) for name in ("box", "score", "class"))
    scale = np.array([WIDTH, HEIGHT] * 2 if unit else [1.0] * 4)
    found = []
    for row in out.reshape(-1, out.shape[-1]).astype(float):
        if row[score] < SCORE:
            continue
        x, y, third, fourth = (row[first : first + 4] * scale).tolist()
        if form == "cxcywh":
            x, y = x - third / 2, y - fourth / 2
        box = [x, y, third, fourth] if form == "xyxy" else [x, y, x + third, y + fourth]
        found.append((int(row[label]), float(row[score]), box))
    return found


@pytest.mark.parametrize("selection", ["nms", "top"])
@pytest.mark.parametrize("how", ["distances", "exponential", "sigmoid"])
@pytest.mark.parametrize("form", ["xyxy", "cxcywh", "xywh"])
def test_a_table_in_any_order_of_columns(form: str, how: str, selection: str) -> None:
    chosen = random.Random(f"{form} {how} {selection}")
    for unit in (False, True):
        columns = ["box", "score", "class", *["batch"] * chosen.randrange(2)]
        chosen.shuffle(columns)
        model = table(chosen.randrange(99), columns, form, how, selection=selection, unit=unit)
        spec, raw = recognise(model.view), run(model)
        (out,) = raw.values()
        found = find_decoder(spec.family).candidates(raw, spec, SCORE)
        same(found, rows_of(out, columns, form, unit))


def test_class_ids_and_picture_indices_both_of_nms() -> None:
    """Their order decides nothing: the columns of NonMaxSuppression do."""
    for columns in (["class", "batch", "score", "box"], ["batch", "class", "box", "score"]):
        model = table(5, columns, "xyxy", "exponential", selection="nms", unit=False)
        spec = recognise(model.view)
        names = [name for part in columns for name in ([part] * 4 if part == "box" else [part])]
        assert spec.params["places"] == [names.index("score"), names.index("class")]
        assert spec.params["batch"] == names.index("batch")


def refused(model: Any) -> bool:
    try:
        recognise(model.view)
    except ModelError:
        return True
    return False


def maps(seed: int, sizes: Sequence[int], *, scored: bool = False, apart: int = 0) -> Any:
    """Raw maps of columns of several convolutions, the second after a sigmoid; two outputs from ``apart`` on."""
    net = Net(seed)
    outputs: list[str] = []
    for x, _, _, _ in net.levels():
        parts = [net.conv(x, 8, size) for size in sizes]
        parts[1] = net.op("Sigmoid", parts[1]) if scored else parts[1]
        groups = [parts[:apart], parts[apart:]] if apart else [parts]
        outputs += [net.op("Concat", *group, axis=1) if len(group) > 1 else group[0] for group in groups]
    return load(net.model(*outputs))


@pytest.mark.parametrize("scored", [False, True])
def test_maps_with_columns_of_a_third_kind_are_refused(scored: bool) -> None:
    chosen = random.Random(str(scored))
    for seed in range(6):
        bins, classes = 4 * chosen.choice([8, 16, 17]), chosen.randrange(1, 20)
        marks = chosen.randrange(2, 4) * chosen.randrange(4, 22)
        sizes = [bins, classes, marks]
        assert refused(maps(seed, sizes, scored=scored)), sizes
        assert refused(maps(seed, chosen.sample(sizes, 3), scored=scored)), sizes
        assert refused(maps(seed, sizes, scored=scored, apart=1)), sizes
        assert refused(maps(seed, sizes, scored=scored, apart=2)), sizes
        assert refused(maps(seed, [*sizes, 5], scored=scored)), sizes


def anchors(seed: int, classes: int, marks: int, *, marks_first: bool, assigned: bool) -> Any:
    """YOLOv5-face and YOLOv7-pose: anchor rows with landmarks in pixels before or after the class scores.

    assigned: the exporter wrote the columns in place, one group after the other.
    """
    net, parts, width = Net(seed), [], 5 + marks + classes
    first = 5 + marks if marks_first else 5
    scores = list(range(first, first + classes))
    landmarks = [index for index in range(5, width) if index not in scores]
    for x, h, w, stride in net.levels():
        y = net.op(
            "Transpose", net.reshape(net.conv(x, 8, 3 * width), 1, 3, width, h, w), perm=[0, 1, 3, 4, 2]
        )

        def picked(columns: list[int], y: str = y) -> str:
            return str(net.op("Gather", y, net.const(columns, np.int64), axis=4))

        done = net.op("Sigmoid", picked([0, 1, 2, 3, 4, *scores]))
        xy = net.op("Mul", net.slice(done, 4, 0, 2), net.const(2.0 * stride))
        wh = net.op("Mul", net.slice(done, 4, 2, 4), net.const(4.0 * stride))
        points = net.op("Mul", picked(landmarks), net.const(float(stride)))
        if assigned:
            out = net.const(np.zeros((1, 3, h, w, width)))
            places = np.stack(np.meshgrid([0], range(3), range(h), range(w), range(width), indexing="ij"), -1)
            groups = [([0, 1, 2, 3, 4, *scores], done), ([0, 1], xy), ([2, 3], wh), (landmarks, points)]
            for columns, values in groups:
                where = net.const(places[:, :, :, :, columns], np.int64)
                out = net.op("ScatterND", out, where, values)
        else:
            rest = net.slice(done, 4, 5, 5 + classes)
            tail = [points, rest] if marks_first else [rest, points]
            out = net.op("Concat", xy, wh, net.slice(done, 4, 4, 5), *tail, axis=4)
        parts.append(net.reshape(out, 1, 3 * h * w, width))
    return load(net.model(net.op("Concat", *parts, axis=1)))


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("marks_first", [False, True])
@pytest.mark.parametrize(("classes", "marks"), [(1, 10), (3, 8), (80, 51)])
def test_landmarks_beside_the_classes_of_anchor_rows_are_refused(
    classes: int, marks: int, marks_first: bool, assigned: bool
) -> None:
    assert refused(anchors(3, classes, marks, marks_first=marks_first, assigned=assigned))


@pytest.mark.parametrize("marks", [0, 10])
def test_scores_with_landmarks_beside_them_are_no_scores(marks: int) -> None:
    """Decoded boxes in one output, scores in the other: SSD-like heads for faces append landmarks."""
    net = Net(8)
    levels = net.levels()
    grid = np.array(cells(levels), np.float32)[None]
    low, high, _, _ = geometry(
        net, net.op("Transpose", flat(net, levels, 4), perm=[0, 2, 1]), grid, "distances"
    )
    scores = net.op("Sigmoid", net.op("Transpose", flat(net, levels, CLASSES), perm=[0, 2, 1]))
    if marks:
        points = net.op("Sigmoid", net.op("Transpose", flat(net, levels, marks), perm=[0, 2, 1]))
        scores = net.op("Concat", scores, points, axis=2)
    model = load(net.model(net.op("Concat", low, high, axis=2), scores))
    assert refused(model) == bool(marks)
