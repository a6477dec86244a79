"""Every family decodes like a loop over its published formula, and is told from the others by structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from avq.contract.decoder_suite import check_decoder
from avq.decoders import builtin_decoders, find_decoder, head_nodes, recognise
from avq.errors import ModelError
from tests.decoders.head_replicas import (
    ANCHORS,
    HEIGHT,
    WIDTH,
    boxes_and_scores,
    cells,
    efficient_nms,
    end_to_end,
    gfl,
    queries,
    query_rows,
    retinanet,
    run,
    suppressed,
    yolov5,
    yolov5_raw,
    yolov6,
    yolov8,
    yolov8_raw,
    yolox,
)

THRESHOLD = 0.3

REPLICAS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "yolox raw": ("yolox", lambda seed: yolox(seed, 3)),
    "yolox decoded": ("yolox", lambda seed: yolox(seed, 3, decoded=True)),
    "yolov5 decoded": ("yolov5", lambda seed: yolov5(seed, 3)),
    "yolov5 heads, five axes": ("yolov5", lambda seed: yolov5_raw(seed, 3, five_axes=True)),
    "yolov5 heads, sigmoid": ("yolov5", lambda seed: yolov5_raw(seed, 3, five_axes=True, sigmoid=True)),
    "yolov5 heads, four axes": ("yolov5", lambda seed: yolov5_raw(seed, 3, five_axes=False)),
    "yolov6": ("yolov6", lambda seed: yolov6(seed, 3)),
    "yolov8 planes": ("yolov8", lambda seed: yolov8(seed, 3)),
    "yolov8 rows, one class": ("yolov8", lambda seed: yolov8(seed, 1, rows=True)),
    "nanodet": ("gfl", lambda seed: gfl(seed, 3, "nanodet")),
    "nanodet-plus": ("gfl", lambda seed: gfl(seed, 3, "plus")),
    "picodet": ("gfl", lambda seed: gfl(seed, 3, "picodet")),
    "yolov8 maps, joined": ("gfl", lambda seed: yolov8_raw(seed, 3, joined=True)),
    "yolov8 maps, apart": ("gfl", lambda seed: yolov8_raw(seed, 3, joined=False)),
    "yolov8 maps, 80 classes": ("gfl", lambda seed: yolov8_raw(seed, 80, joined=True)),
    "retinanet joined": ("retinanet", lambda seed: retinanet(seed, 3, joined=True)),
    "retinanet per map": ("retinanet", lambda seed: retinanet(seed, 3, joined=False)),
    "boxes and scores": ("builtin", lambda seed: boxes_and_scores(seed, 5)),
    "ssd before nms": ("builtin", lambda seed: boxes_and_scores(seed, 5, softmax=True)),
    "end to end": ("nms_in_graph", lambda seed: end_to_end(seed, 3)),
    "query rows": ("nms_in_graph", lambda seed: query_rows(seed, 3)),
    "nms triplets": ("nms_in_graph", lambda seed: suppressed(seed, 3, style="triplets")),
    "nms lists": ("nms_in_graph", lambda seed: suppressed(seed, 3, style="lists")),
    "queries joined": ("nms_in_graph", lambda seed: queries(seed, 3, joined=True, sigmoid=True)),
    "queries apart": ("nms_in_graph", lambda seed: queries(seed, 3, joined=False, sigmoid=False)),
}


@pytest.mark.parametrize("label", REPLICAS)
def test_exactly_one_family_recognises_its_head_whatever_the_names(label: str) -> None:
    family, build = REPLICAS[label]
    for seed in (1, 2):
        graph = build(seed)[0].view
        assert [d.family for d in builtin_decoders() if d.recognise(graph)] == [family]
        check_decoder(find_decoder(family), graph, seed=seed)


@pytest.mark.parametrize("label", REPLICAS)
def test_the_head_ends_at_the_bare_layers_and_holds_everything_after(label: str) -> None:
    _, build = REPLICAS[label]
    graph = build(3)[0].view
    kept = head_nodes(graph, recognise(graph))
    layers = [graph.node(name) for name in kept if graph.node(name).op in ("Conv", "MatMul")]
    assert layers
    for name in kept:
        if kept[name].startswith("decodes"):
            continue
        readers = [n for output in graph.node(name).outputs for n, _ in graph.consumers(output)]
        assert all(reader.name in kept for reader in readers)
    backbone = {n.name for n in graph.nodes if n.op == "Relu"}
    assert not backbone & set(kept)


def same(found: Any, expected: Any) -> None:
    """The same boxes in any order; at least one, or the test would prove nothing."""
    boxes, scores, class_ids = found
    assert len(scores) == len(expected) > 0
    left = list(range(len(scores)))
    for k, score, box in expected:
        one = min(left, key=lambda i: np.abs(boxes[i] - box).max() + 1e3 * (class_ids[i] != k))
        left.remove(one)
        assert class_ids[one] == k
        assert scores[one] == pytest.approx(score, rel=1e-4, abs=1e-5)
        assert boxes[one].tolist() == pytest.approx(box, rel=1e-3, abs=1e-2)


def decode(model: Any, threshold: float = THRESHOLD) -> Any:
    spec = recognise(model.view)
    raw = run(model)
    return find_decoder(spec.family).candidates(raw, spec, threshold), list(raw.values())


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def corners(cx: float, cy: float, w: float, h: float) -> list[float]:
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def best(scores: Any) -> tuple[int, float]:
    k = int(np.argmax(scores))
    return k, float(scores[k])


@pytest.mark.parametrize(("decoded", "coarse_first"), [(False, False), (True, False), (False, True)])
def test_yolox(decoded: bool, coarse_first: bool) -> None:
    model, levels = yolox(11, 3, decoded=decoded, coarse_first=coarse_first)
    found, (out,) = decode(model, 0.2)
    expected = []
    for row, (gx, gy, s) in zip(out[0], cells(levels), strict=True):
        k, top = best(row[5:])
        if row[4] * top < 0.2:
            continue
        x, y, w, h = row[:4]
        box = (x, y, w, h) if decoded else ((x + gx) * s, (y + gy) * s, math.exp(w) * s, math.exp(h) * s)
        expected.append((k, float(row[4] * top), corners(*map(float, box))))
    same(found, expected)


def test_yolox_raw_and_decoded_in_the_graph_agree() -> None:
    (raw, _), (decoded, _) = yolox(12, 3), yolox(12, 3, decoded=True)
    boxes = [decode(model, 0.2)[0][0] for model in (raw, decoded)]
    assert len(boxes[0]) > 0
    np.testing.assert_allclose(boxes[0], boxes[1], rtol=1e-4, atol=1e-3)


def test_yolov5_decoded_in_the_graph() -> None:
    found, (out,) = decode(yolov5(13, 3)[0])
    expected = [
        (*best(row[5:] * row[4]), corners(*map(float, row[:4])))
        for row in out[0]
        if (row[5:] * row[4]).max() >= THRESHOLD
    ]
    same(found, expected)


@pytest.mark.parametrize(("five_axes", "sigmoid"), [(True, False), (True, True), (False, False)])
def test_yolov5_raw_heads(five_axes: bool, sigmoid: bool) -> None:
    model, levels = yolov5_raw(14, 3, five_axes=five_axes, sigmoid=sigmoid)
    found, outputs = decode(model)
    expected = []
    for out, (_, h, w, s), anchors in zip(outputs[::-1], levels, ANCHORS, strict=True):
        table = out if five_axes else out.reshape(1, 3, 8, h, w).transpose(0, 1, 3, 4, 2)
        for a in range(3):
            for y in range(h):
                for x in range(w):
                    p = [v if sigmoid else sig(v) for v in table[0, a, y, x].tolist()]
                    k, top = best(p[5:])
                    if p[4] * top >= THRESHOLD:
                        centre = ((2 * p[0] - 0.5 + x) * s, (2 * p[1] - 0.5 + y) * s)
                        size = ((2 * p[2]) ** 2 * anchors[a][0], (2 * p[3]) ** 2 * anchors[a][1])
                        expected.append((k, p[4] * top, corners(*centre, *size)))
    same(found, expected)


def test_yolov6() -> None:
    found, (out,) = decode(yolov6(15, 3)[0])
    expected = [
        (*best(row[5:]), corners(*map(float, row[:4]))) for row in out[0] if row[5:].max() >= THRESHOLD
    ]
    # Distances of a random network may be negative: such boxes are dropped later, not here.
    same(found, expected)


@pytest.mark.parametrize("rows", [False, True])
def test_yolov8(rows: bool) -> None:
    found, (out,) = decode(yolov8(16, 3, rows=rows)[0])
    table = out[0] if rows else out[0].T
    expected = [
        (*best(row[4:]), corners(*map(float, row[:4]))) for row in table if row[4:].max() >= THRESHOLD
    ]
    same(found, expected)


@pytest.mark.parametrize(("style", "a", "b"), [("nanodet", 0.5, -0.5), ("plus", 0, 0), ("picodet", 0.5, 0)])
def test_gfl(style: str, a: float, b: float) -> None:
    model, levels = gfl(17, 3, style)
    found, outputs = decode(model)
    rows = [
        (out if out.ndim == 3 else out.reshape(*out.shape[:2], -1).transpose(0, 2, 1))[0] for out in outputs
    ]
    half = len(rows) // 2
    table = (
        rows[0]
        if style == "plus"
        else np.concatenate([np.hstack(p) for p in zip(rows[:half], rows[half:], strict=True)])
    )
    expected = []
    for row, (gx, gy, s) in zip(table, cells(levels), strict=True):
        k, top = best(row[:3])
        if top >= THRESHOLD:
            sides = []
            for bins in row[3:].reshape(4, 8).astype(float):
                weights = np.exp(bins) / np.exp(bins).sum()
                sides.append(sum(i * weight for i, weight in enumerate(weights)) * s)
            x, y = gx * s + a * s + b, gy * s + a * s + b
            expected.append((k, top, [x - sides[0], y - sides[1], x + sides[2], y + sides[3]]))
    same(found, expected)


@pytest.mark.parametrize("joined", [True, False])
def test_yolov8_cut_before_its_decoding(joined: bool) -> None:
    model, levels = yolov8_raw(19, 3, joined=joined)
    found, outputs = decode(model)
    rows = [out.reshape(out.shape[1], -1).T.astype(float) for out in outputs]
    table = np.concatenate(
        rows if joined else [np.hstack(p) for p in zip(rows[::2], rows[1::2], strict=True)]
    )
    expected = []
    for row, (gx, gy, s) in zip(table, cells(levels), strict=True):
        k, top = best(row[64:])
        score = sig(top) if joined else top
        if score >= THRESHOLD:
            weights = np.exp(row[:64].reshape(4, 16))
            left, up, right, down = weights @ np.arange(16) / weights.sum(1) * s
            x, y = (gx + 0.5) * s, (gy + 0.5) * s
            expected.append((k, score, [x - left, y - up, x + right, y + down]))
    same(found, expected)


def torchvision_anchors(stride: int) -> list[list[float]]:
    sizes = [stride * 4, int(stride * 4 * 2 ** (1 / 3)), int(stride * 4 * 2 ** (2 / 3))]
    anchors = []
    for ratio in (0.5, 1.0, 2.0):
        for size in sizes:
            h, w = size * math.sqrt(ratio), size / math.sqrt(ratio)
            anchors.append([float(np.round(v / 2)) for v in (-w, -h, w, h)])
    return anchors


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
def test_retinanet(joined: bool) -> None:
    model, levels = retinanet(18, 3, joined=joined)
    found, outputs = decode(model, 0.6)
    if joined:
        scores, deltas = outputs[0][0], outputs[1][0]
    else:
        tables = [[o.reshape(9, -1, *o.shape[2:]).transpose(2, 3, 0, 1).reshape(-1, o.shape[1] // 9) for o in part]
                  for part in (outputs[:3], outputs[3:])]  # fmt: skip
        scores, deltas = (np.concatenate(part) for part in tables)
    expected, row = [], 0
    for gx, gy, s in cells(levels):
        for x0, y0, x1, y1 in torchvision_anchors(s):
            k, top = best([sig(v) for v in scores[row].tolist()])
            if top >= 0.6:
                dx, dy, dw, dh = map(float, deltas[row])
                w, h = x1 - x0, y1 - y0
                centre = (gx * s + (x0 + x1) / 2 + dx * w, gy * s + (y0 + y1) / 2 + dy * h)
                expected.append((k, top, corners(*centre, math.exp(dw) * w, math.exp(dh) * h)))
            row += 1
    same(found, expected)


def test_decoded_boxes_with_scores() -> None:
    found, (boxes, scores) = decode(boxes_and_scores(19, 5)[0])
    expected = [
        (*best(s), b.tolist()) for b, s in zip(boxes[0], scores[0], strict=True) if s.max() >= THRESHOLD
    ]
    same(found, expected)


def test_ssd_before_nms_drops_the_background_and_scales_to_pixels() -> None:
    found, (boxes, scores) = decode(boxes_and_scores(20, 5, softmax=True)[0])
    scale = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    expected = [
        (*best(s[1:]), (b * scale).tolist())
        for b, s in zip(boxes[0], scores[0], strict=True)
        if s[1:].max() >= THRESHOLD
    ]
    same(found, expected)


def test_end_to_end_rows() -> None:
    found, (out,) = decode(end_to_end(21, 3)[0])
    same(found, [(int(r[5]), float(r[4]), r[:4].tolist()) for r in out[0] if r[4] >= THRESHOLD])


def test_rows_that_start_with_the_index_of_the_picture() -> None:
    found, (out,) = decode(end_to_end(26, 3, columns="batch box class score")[0])
    same(found, [(int(r[5]), float(r[6]), r[1:5].tolist()) for r in out[0] if r[6] >= THRESHOLD])


ORDERS = [
    "box score class",
    "class score box",
    "box class score",
    "score box class",
    "class box score",
    "score class box",
    "batch class score box",
    "batch box score class",
    "batch class box score",
    "batch score box class",
    "batch box class score",
]


@pytest.mark.parametrize("columns", ORDERS)
def test_rows_with_their_columns_in_any_order(columns: str) -> None:
    model = end_to_end(27, 3, columns=columns)[0]
    found, (out,) = decode(model)
    names = [n for part in columns.split() for n in ([part] * 4 if part == "box" else [part])]
    box, score, label = names.index("box"), names.index("score"), names.index("class")
    expected = [
        (int(r[label]), float(r[score]), r[box : box + 4].tolist()) for r in out[0] if r[score] >= THRESHOLD
    ]
    assert expected
    same(found, expected)


def test_rows_of_rotated_boxes_are_refused() -> None:
    with pytest.raises(ModelError, match="match no known detection head"):
        recognise(end_to_end(27, 3, columns="box score class angle")[0].view)


def test_a_refused_head_says_what_the_model_was_exported_for() -> None:
    graph = replace(end_to_end(27, 3, columns="box score class angle")[0].view, metadata={"task": "obb"})
    with pytest.raises(ModelError) as refused:
        recognise(graph)
    assert "exported for 'obb'" in str(refused.value)


def test_detr_rows_with_their_top_k_in_the_graph() -> None:
    found, (out,) = decode(query_rows(25, 3)[0])
    scale = np.array([WIDTH, HEIGHT] * 2)
    rows = [(int(r[5]), float(r[4]), corners(*(r[:4] * scale).tolist())) for r in out[0] if r[4] >= THRESHOLD]
    same(found, rows)


@pytest.mark.parametrize("refined", [False, True])
def test_nms_triplets_and_lists_agree(refined: bool) -> None:
    """Boxes of a second stage too: dividing its deltas by ten does not make them shares of the picture."""
    triplets, (picked, boxes, scores) = decode(suppressed(22, 3, style="triplets", refined=refined)[0])
    expected = [(int(k), float(scores[0, k, i]), boxes[0, i].tolist()) for _, k, i in picked]
    same(triplets, expected)
    same(decode(suppressed(22, 3, style="lists", refined=refined)[0])[0], expected)


@pytest.mark.parametrize("joined", [True, False])
def test_detr_queries_count_every_class(joined: bool) -> None:
    model, _ = queries(23, 3, joined=joined, sigmoid=joined)
    found, outputs = decode(model)
    boxes, scores = (outputs[0][0, :, :4], outputs[0][0, :, 4:]) if joined else (outputs[1][0], outputs[0][0])
    expected = []
    for box, row in zip(boxes.tolist(), scores.tolist(), strict=True):
        cx, cy, w, h = box[0] * WIDTH, box[1] * HEIGHT, box[2] * WIDTH, box[3] * HEIGHT
        for k, value in enumerate(row):
            score = value if joined else sig(value)
            if score >= THRESHOLD:
                expected.append((k, score, corners(cx, cy, w, h)))
    same(found, expected)


def test_efficient_nms_reads_only_as_many_boxes_as_it_says() -> None:
    graph = efficient_nms(24, 3, most=4).view
    spec = recognise(graph)
    count, boxes, scores, labels = graph.output_names
    raw = {
        count: np.array([[2]], np.int32),
        boxes: np.arange(16, dtype=np.float32).reshape(1, 4, 4),
        scores: np.array([[0.9, 0.2, 0.8, 0.7]], np.float32),
        labels: np.array([[1, 2, 0, 0]], np.int32),
    }
    same(find_decoder(spec.family).candidates(raw, spec, THRESHOLD), [(1, 0.9, [0, 1, 2, 3])])
