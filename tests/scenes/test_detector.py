"""The packaged detector: its file is plain, it says how to feed it, and it is good enough to be quantized."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from avq.scenes import CLASS_NAMES, builtin_detector_path

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PLAIN = {"Conv", "Relu", "Add", "Resize", "Concat", "Reshape", "Transpose", "Mul", "Sigmoid"}


@pytest.fixture(scope="module")
def model() -> Any:
    return onnx.load(builtin_detector_path())


def test_the_file_is_small_and_holds_plain_nodes_only(model: Any) -> None:
    assert builtin_detector_path().stat().st_size <= 5_000_000
    kinds = Counter(node.op_type for node in model.graph.node)
    assert set(kinds) <= PLAIN
    assert kinds["Mul"] == kinds["Sigmoid"] == 1
    grouped = [n.name for n in model.graph.node for a in n.attribute if a.name == "group" and a.i != 1]
    assert grouped == []
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_inputs_outputs_and_metadata(model: Any) -> None:
    def shape(value: Any) -> list[int]:
        return [d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {v.name: shape(v) for v in model.graph.input} == {"images": [1, 3, 192, 320]}
    assert {v.name: shape(v) for v in model.graph.output} == {"boxes": [1, 1260, 4], "scores": [1, 1260, 5]}
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    said = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert said["names"] == list(CLASS_NAMES)
    assert said["avq.preprocess"] == {
        "width_px": 320,
        "height_px": 192,
        "resize": "letterbox",
        "anchor": "top-left",
        "pad_value": 114,
        "channel_order": "BGR",
        "scale": 0.00392156862745098,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
    }


@pytest.mark.slow
def test_it_finds_what_is_drawn() -> None:
    pytest.importorskip("faster_coco_eval")
    from avq.scenes.train.evaluate import held_out_accuracy, onnx_predictor

    accuracy = held_out_accuracy(onnx_predictor(builtin_detector_path()), scenes=150)
    assert accuracy.map >= 0.55, accuracy
    assert min(accuracy.per_class.values()) >= 0.40, accuracy


def test_suppression_keeps_the_best_of_each_heap() -> None:
    from avq.scenes.train.evaluate import suppress

    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], np.float32)
    assert suppress(boxes, np.array([0.5, 0.9, 0.7], np.float32)).tolist() == [1, 2]
