"""Another precision may order nearly equal scores otherwise; what it makes of the chosen rows has to be the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from avq.builder.index_selection import sqnr_with_same_indices
from avq.engines import engine_by_name
from avq.hookspecs import Session
from avq.measure.fidelity import SqnrMeter
from avq.types import SessionOptions

ROWS, KEPT, SIDE_PX = 64, 16, 8
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (1, 3, SIDE_PX, SIDE_PX), np.uint8) for seed in range(3)
]


def detector(*, jitter: float = 0.0, score_gain: float = 1.0, box_gain: float = 1.0) -> bytes:
    """64 rows of boxes and scores of one picture; the 16 best by score, with the best class of each, in that order.

    Scores lie 1e-4 apart; ``jitter`` moves each by up to so much, as another precision does.
    """
    rng = np.random.default_rng(7)
    scores = 1.0 + 1e-4 * rng.permutation(ROWS) + jitter * rng.uniform(-1, 1, ROWS)
    arrays = {
        "boxes_w": rng.normal(0, 1, (3 * SIDE_PX * SIDE_PX, ROWS * 4)),
        "classes": rng.normal(0, 1, (1, ROWS, 3)),
        "scores": score_gain * scores[None],
        "gain": np.array(box_gain),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    for name, value in {"rows": [1, ROWS, 4], "flat": [1, -1], "k": [KEPT], "last": [2]}.items():
        constants.append(numpy_helper.from_array(np.array(value, np.int64), name))
    node = helper.make_node
    nodes = [
        node("Cast", ["picture"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        node("Reshape", ["pixels", "flat"], ["line"], name="line"),
        node("MatMul", ["line", "boxes_w"], ["moved"], name="matmul"),
        node("Reshape", ["moved", "rows"], ["all_boxes"], name="to_rows"),
        node("TopK", ["scores", "k"], ["best", "places"], name="select", axis=1),
        node("Unsqueeze", ["places", "last"], ["column"], name="column"),
        node("Expand", ["column", "four"], ["every"], name="every"),
        node("GatherElements", ["all_boxes", "every"], ["taken"], name="take", axis=1),
        node("Mul", ["taken", "gain"], ["boxes"], name="refine"),
        node("ArgMax", ["classes"], ["labels"], name="label", axis=2, keepdims=0),
    ]
    constants.append(numpy_helper.from_array(np.array([1, KEPT, 4], np.int64), "four"))
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "detector",
        [port("picture", TensorProto.UINT8, [1, 3, SIDE_PX, SIDE_PX])],
        [
            port("boxes", TensorProto.FLOAT, [1, KEPT, 4]),
            port("best", TensorProto.FLOAT, [1, KEPT]),
            port("labels", TensorProto.INT64, [1, ROWS]),
        ],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def opened(model: bytes) -> Session:
    return engine_by_name("onnxruntime").open(model, SessionOptions(optimise=False))


def compared(other: bytes) -> dict[str, float]:
    return sqnr_with_same_indices(detector(), other, opened, PICTURES)


def row_by_row(other: bytes) -> dict[str, float]:
    meter = SqnrMeter()
    for tensor in PICTURES:
        meter.add(opened(detector()).infer(tensor), opened(other).infer(tensor))
    return meter.result_db()


def test_another_order_of_nearly_equal_scores_is_no_difference() -> None:
    other = detector(jitter=5e-4)
    assert row_by_row(other)["boxes"] < 6.0  # rows that hold other boxes
    assert compared(other)["boxes"] == np.inf
    assert min(compared(other).values()) > 60.0


@pytest.mark.parametrize(
    ("wrong", "where"),
    [({"box_gain": 1.3}, "boxes"), ({"score_gain": 1.3}, "input 0 of select"), ({"score_gain": 1.3}, "best")],
)
def test_wrong_numbers_before_and_behind_a_choice_are_seen(wrong: dict[str, Any], where: str) -> None:
    assert compared(detector(jitter=5e-4, **wrong))[where] == pytest.approx(10.5, abs=0.2)


def test_without_choices_it_is_the_plain_ratio() -> None:
    def plain(gain: float) -> bytes:
        proto = onnx.load_model_from_string(detector(box_gain=gain))
        kept = [n for n in proto.graph.node if n.name in ("cast", "line", "matmul", "to_rows")]
        kept.append(helper.make_node("Mul", ["all_boxes", "gain"], ["boxes"], name="refine"))
        del proto.graph.node[:], proto.graph.output[1:]
        proto.graph.node.extend(kept)
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = ROWS
        return proto.SerializeToString()

    ratios = sqnr_with_same_indices(plain(1.0), plain(1.1), opened, PICTURES)
    assert ratios == {"boxes": pytest.approx(20.0, abs=0.01)}


def suppressing(lift: float) -> bytes:
    """Boxes in a row, each overlapping the next; suppression keeps every other one, whose scores go out."""
    count = 8
    edges = np.arange(count, dtype=np.float32)[:, None] * 4
    boxes = np.concatenate([0 * edges, edges, 0 * edges + 10, edges + 10], 1)[None]
    scores = np.full((1, 1, count), 0.9, np.float32)
    scores[0, 0, ::2] += 1e-4
    scores[0, 0, 1::2] += lift
    arrays = {"boxes": boxes, "scores": scores, "scale": np.asarray(1.0, np.float32)}
    constants = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    more: dict[str, np.ndarray] = {
        "most": np.array([count], np.int64),
        "iou": np.array([0.3], np.float32),
        "third": np.array([2], np.int64),
    }
    constants += [numpy_helper.from_array(array, name) for name, array in more.items()]
    node, port = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["kept"], name="suppress"),
        node("Gather", ["kept", "third"], ["places"], name="places", axis=1),
        node("Squeeze", ["boxes", "first"], ["rows"], name="rows"),
        node("Gather", ["rows", "places"], ["out"], name="take"),
    ]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    graph = helper.make_graph(
        nodes,
        "suppressing",
        [port("picture", TensorProto.UINT8, [1, 3, SIDE_PX, SIDE_PX])],
        [port("out", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()


def test_suppression_that_keeps_others_of_equal_boxes_is_no_difference() -> None:
    ratios = sqnr_with_same_indices(suppressing(0.0), suppressing(2e-4), opened, PICTURES[:1])
    assert ratios["out"] == np.inf and ratios["input 1 of suppress"] > 60.0
