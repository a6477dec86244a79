"""A head is held to what it does on pictures, and to what the metadata says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from avq.builder.frontend.analyse import ModelAnalysis, analyse_file
from avq.builder.frontend.metadata import class_names
from avq.builder.frontend.plausibility import check_boxes
from avq.builder.graph.model import FloatModel
from avq.decoders import recognise
from avq.errors import ModelError
from avq.scenes import builtin_detector_path, random_scene
from avq.types import U8, AnyArray, DecoderSpec, RawOutputs
from tests.decoders.head_replicas import yolov5_face, yolov5_raw, yolov8, yolov8_maps, yolox


def infer(model: FloatModel) -> Callable[[AnyArray], RawOutputs]:
    session = onnxruntime.InferenceSession(
        model.proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    given = model.view.inputs[0].name
    return lambda values: dict(zip(names, session.run(None, {given: values}), strict=True))


@pytest.fixture(scope="module")
def scenes() -> list[U8]:
    return [random_scene(seed).pixels for seed in range(6)]


@pytest.fixture(scope="module")
def detector(scenes: list[U8]) -> ModelAnalysis:
    return analyse_file(
        builtin_detector_path(),
        decoder=None,
        preprocess=None,
        classes=None,
        sample_pixels=lambda: scenes,
        infer=infer,
    )


def check(
    detector: ModelAnalysis, pictures: list[U8], change: Callable[[RawOutputs], Any], **params: Any
) -> Any:
    run = infer(detector.model)
    spec = replace(detector.decoder, params={**detector.decoder.params, **params})
    return check_boxes(lambda values: change(run(values)), detector.spec, spec, pictures)


def unchanged(raw: RawOutputs) -> RawOutputs:
    return raw


def changed(detector: ModelAnalysis, name: str, change: Callable[[AnyArray], AnyArray]) -> Any:
    tensor = detector.decoder.params[name]
    return lambda raw: {**raw, tensor: change(raw[tensor])}


def test_the_built_in_detector_is_plausible(detector: ModelAnalysis, scenes: list[U8]) -> None:
    assert check(detector, scenes, unchanged).answer == "plausible"
    assert any(message.startswith("head checked: ") for message in detector.messages)


def test_pictures_without_boxes_cannot_tell(detector: ModelAnalysis, scenes: list[U8]) -> None:
    result = check(detector, scenes, changed(detector, "scores", lambda a: a * 0.3))
    assert result.answer == "cannot tell"
    assert result.detail.startswith("0 boxes")


MISREAD: dict[str, tuple[str, Callable[[AnyArray], AnyArray], str]] = {
    "scores above 1": ("scores", lambda a: a * 3, "above 1"),
    "scores of no probability": ("scores", lambda a: a * 200, "above 1"),
    "scores that are not finite": ("scores", lambda a: a * np.float32(np.nan), "not finite"),
    "scores of everything": ("scores", lambda a: 1 - a * 0.1, "median"),
    "boxes elsewhere": ("boxes", lambda a: a + 5000, "outside"),
    "boxes inside out": ("boxes", lambda a: -a, "outside"),
}


@pytest.mark.parametrize("fault", MISREAD)
def test_misread_outputs_are_implausible(fault: str, detector: ModelAnalysis, scenes: list[U8]) -> None:
    name, change, word = MISREAD[fault]
    result = check(detector, scenes, changed(detector, name, change))
    assert result.answer == "implausible"
    assert word in result.detail


def test_boxes_that_do_not_depend_on_the_picture_are_implausible(
    detector: ModelAnalysis, scenes: list[U8]
) -> None:
    fixed = infer(detector.model)(np.zeros((1, 3, *detector.model.view.inputs[0].shape[2:]), np.uint8))
    boxes, scores = (fixed[detector.decoder.params[name]].copy() for name in ("boxes", "scores"))
    scores[:] = 0
    rows = np.arange(3, scores.shape[1], scores.shape[1] // 9)
    scores[0, rows, 0] = 0.9
    boxes[0, rows] = [[2, 9 * i, 10, 9 * i + 8] for i in range(len(rows))]
    raw = {detector.decoder.params["boxes"]: boxes, detector.decoder.params["scores"]: scores}
    result = check(detector, scenes, lambda _: raw, format="xyxy", normalised=False, background=0)
    assert result.answer == "implausible"
    assert "mirror" in result.detail or "median" in result.detail


def test_a_class_id_out_of_range(detector: ModelAnalysis, scenes: list[U8]) -> None:
    run = infer(detector.model)
    spec = replace(detector.decoder, num_classes=1)
    result = check_boxes(run, detector.spec, spec, scenes)
    assert (result.answer, result.of_class) == ("implausible", False)
    assert "class id" in result.detail


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(
    ("classes", "keypoints", "shape"), [(1, 15, "[5, 3]"), (2, 34, "[17, 2]"), (80, 51, "[17, 3]")]
)
def test_keypoints_in_raw_maps_are_left_out(
    seed: int, rows: bool, classes: int, keypoints: int, shape: str
) -> None:
    described = yolov8_maps(seed, classes, keypoints=keypoints, rows=rows, metadata={"kpt_shape": shape})
    spec = recognise(described.view)
    assert (spec.family, spec.num_classes, spec.params["keypoints"]) == ("gfl", classes, keypoints)
    plain = recognise(yolov8_maps(seed, classes, rows=rows).view)
    assert plain.params["parts"][0]["scores"]["first"] == spec.params["parts"][0]["scores"]["first"] == 64
    for metadata in ({}, {"kpt_shape": "[4, 2]"}, {"kpt_shape": "nonsense"}):
        with pytest.raises(ModelError, match="match no known"):
            recognise(yolov8_maps(seed, classes, keypoints=keypoints, rows=rows, metadata=metadata).view)


@pytest.mark.parametrize(("classes", "landmarks"), [(1, 10), (3, 10), (2, 136), (1, 8)])
def test_landmarks_before_the_classes_are_refused(classes: int, landmarks: int) -> None:
    with pytest.raises(ModelError, match="match no known"):
        recognise(yolov5_face(7, classes, landmarks).view)


def test_landmarks_in_raw_anchor_heads_are_no_classes() -> None:
    """One convolution gives all columns: only their values show that they are no classes."""
    model = yolov5_raw(1, 11, five_axes=True)[0]
    spec = recognise(model.view)
    from avq.decoders.yolo import Yolov5Decoder

    rng = np.random.default_rng(0)
    head = {h["output"]: rng.normal(0, 1, model.view.shape(h["output"])) for h in spec.params["heads"]}
    for values in head.values():
        values[..., 4] = rng.normal(-4, 3, values.shape[:-1])
        values[..., 5:15] = rng.normal(0, 2, (*values.shape[:-1], 10))  # landmark offsets
    assert "several classes" in Yolov5Decoder().contradiction(head, spec)
    for values in head.values():
        values[..., 5:] = -5
        np.put_along_axis(values[..., 5:], rng.integers(0, 11, (*values.shape[:-1], 1)), 4.0, -1)
    assert Yolov5Decoder().contradiction(head, spec) == ""


def test_table_columns_are_checked_on_values() -> None:
    from avq.decoders.nms_in_graph import NmsInGraphDecoder

    params = {"layout": "table", "output": "t", "first": 1, "places": [6, 5], "batch": 0}
    spec = DecoderSpec("nms_in_graph", params, num_classes=0)
    good = np.array([[0, 10, 20, 30, 40, 5, 0.9], [0, 0, 0, 0, 0, 0, 0]], np.float32)
    assert NmsInGraphDecoder().contradiction({"t": good}, spec) == ""
    for column, value, word in ((6, 220, "above 1"), (5, 0.91, "whole"), (0, 5, "not 0")):
        bad = good.copy()
        bad[0, column] = value
        assert word in NmsInGraphDecoder().contradiction({"t": bad}, spec)


def save(tmp_path: Path, model: FloatModel, **metadata: str) -> Path:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    onnx.helper.set_model_props(proto, metadata)
    file = tmp_path / "model.onnx"
    onnx.save(proto, str(file))
    return file


def analysed(file: Path, **flags: str | None) -> ModelAnalysis:
    given: dict[str, Any] = {"decoder": None, "preprocess": None, "classes": None, **flags}
    return analyse_file(file, sample_pixels=None, infer=infer, **given)


CONTRADICTIONS = {
    "one name": {"names": "{0: 'face'}"},
    "more names": {"names": '["a", "b", "c", "d"]'},
    "Paddle's names": {"character": "a\nb"},
    "pose": {"task": "pose"},
    "segment": {"task": "segment", "names": '["a", "b", "c"]'},
    "rotated": {"task": "obb"},
    "whole pictures": {"task": "classify"},
    "keypoints": {"kpt_shape": "[17, 3]"},
}


@pytest.mark.parametrize("metadata", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
@pytest.mark.parametrize("head", [yolox, yolov8])
def test_metadata_that_contradicts_the_head_stops(
    head: Callable[..., Any], metadata: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        analysed(save(tmp_path, head(1, 3)[0], **metadata))
    assert "contradicts" in refused.value.what
    if "names" in metadata and "task" not in metadata:
        assert "3 columns" in refused.value.seen


def test_flags_of_the_user_win(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    file = save(tmp_path, yolox(1, 3)[0], names="['face']")
    assert analysed(file, classes=str(names)).class_names == ("a", "b", "c")
    file = save(tmp_path, yolov8(1, 3)[0], task="pose")
    assert analysed(file, decoder="yolov8").decoder.family == "yolov8"


def test_names_that_fit(tmp_path: Path) -> None:
    view = yolox(1, 3)[0].view
    for metadata in (
        {"names": "['a', 'b', 'c']"},
        {"character": "a\nb\nc\n"},
        {"names": "['background', 'a', 'b', 'c']"},
    ):
        assert class_names(replace(view, metadata=metadata), 3, None)[0] == ("a", "b", "c")


def test_a_head_that_does_not_behave_stops_the_build(tmp_path: Path, scenes: list[U8]) -> None:
    """Random weights have the structure of a head, and not its behaviour."""
    file = save(tmp_path, yolox(1, 3)[0])
    with pytest.raises(ModelError, match="do not behave like one"):
        analyse_file(
            file, decoder=None, preprocess="yolox", classes=None, sample_pixels=lambda: scenes, infer=infer
        )


def test_classes_that_change_in_the_mirror_image(detector: ModelAnalysis, scenes: list[U8]) -> None:
    """Classes of left and right do; so do landmarks that are read as classes, and a named head alone passes."""
    run, calls = infer(detector.model), iter(range(10**6))

    def swapped(values: AnyArray) -> RawOutputs:
        raw = run(values)
        name = detector.decoder.params["scores"]
        axis = 1 if detector.decoder.params["score_planes"] else 2
        return {**raw, name: np.flip(raw[name], axis)} if next(calls) % 2 else raw

    result = check_boxes(swapped, detector.spec, detector.decoder, scenes)
    assert (result.answer, result.of_class) == ("implausible", True)
    assert "with another class" in result.detail


def test_a_named_head_that_does_not_behave_stops_the_build_too(tmp_path: Path, scenes: list[U8]) -> None:
    file = save(tmp_path, yolox(1, 3)[0])
    with pytest.raises(ModelError, match="do not behave like one"):
        analyse_file(
            file, decoder="yolox", preprocess="yolox", classes=None, sample_pixels=lambda: scenes, infer=infer
        )
