"""A model without flags: head, preprocessing and classes are detected, with messages on how."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from avq.builder.frontend.analyse import ModelAnalysis, analyse_file
from avq.builder.graph.model import FloatModel
from avq.errors import ConfigError, ModelError, RequestError
from avq.preprocess import PRESETS, spec_to_json
from avq.scenes import random_scene
from tests.conftest import ROOT
from tests.decoders.head_replicas import HEIGHT, WIDTH, Net, boxes_and_scores, yolov8, yolox

COCO_CLASSES = 80


def infer(model: FloatModel) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.proto.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    return lambda tensor: dict(
        zip(names, session.run(None, {model.view.inputs[0].name: tensor}), strict=True)
    )


def saved(tmp_path: Path, model: FloatModel, **metadata: str) -> Path:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    helper.set_model_props(proto, metadata)
    file = tmp_path / "model.onnx"
    onnx.save(proto, str(file))
    return file


def analysed(path: Path, pictures: Sequence[np.ndarray] | None = None, **flags: str | None) -> ModelAnalysis:
    settings: dict[str, Any] = {"decoder": None, "preprocess": None, "classes": None} | flags
    return analyse_file(
        path, sample_pixels=None if pictures is None else lambda: pictures, infer=infer, **settings
    )


def noise(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 90, 160, 3), np.uint8))


def test_preprocessing_and_names_come_from_metadata(tmp_path: Path) -> None:
    spec = PRESETS["nanodet"](WIDTH, HEIGHT)
    names = ["car", "van", "bus"]
    file = saved(
        tmp_path,
        yolox(1, 3)[0],
        **{"avq.preprocess": json.dumps(spec_to_json(spec)), "names": json.dumps(names)},
    )
    analysis = analysed(file)
    assert analysis.spec == spec
    assert analysis.class_names == tuple(names)
    assert (analysis.decoder.family, analysis.decoder.num_classes) == ("yolox", 3)
    assert analysis.model.view.inputs[0].dtype == "uint8"
    assert analysis.source.view.inputs[0].dtype == "float32"
    assert set(analysis.keep_float) <= {n.name for n in analysis.model.view.nodes}
    assert analysis.warnings == ()
    assert any("recognised by its structure" in m for m in analysis.messages)


def test_ultralytics_metadata_is_enough(tmp_path: Path) -> None:
    names = str({0: "person", 1: "it's", 2: "c"})
    file = saved(
        tmp_path, yolov8(2, 3)[0], names=names, stride="32", imgsz=f"[{HEIGHT}, {WIDTH}]", task="detect"
    )
    analysis = analysed(file)
    assert analysis.class_names == ("person", "it's", "c")
    assert analysis.spec == PRESETS["yolov8"](WIDTH, HEIGHT)
    assert any("Ultralytics" in message for message in analysis.messages)


def test_a_dynamic_model_takes_its_size_from_metadata_or_the_preprocess_file(tmp_path: Path) -> None:
    net = Net(3)
    weight = net.const(np.ones((2, 3, 1, 1)))
    proto = net.model(net.op("Conv", net.input, weight, kernel_shape=[1, 1]))
    for axis in (0, 2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    file = tmp_path / "model.onnx"
    onnx.save(proto, str(file))
    with pytest.raises(ModelError, match="any size"):
        analysed(file, decoder="none")
    spec = tmp_path / "p.json"
    spec.write_text('{"width_px": 48, "height_px": 32, "scale": 1}')
    analysis = analysed(file, decoder="none", preprocess=str(spec))
    assert analysis.model.view.inputs[0].shape == (1, 3, 32, 48)
    helper.set_model_props(proto, {"imgsz": "[40, 56]"})
    onnx.save(proto, str(file))
    assert analysed(file, decoder="none").model.view.inputs[0].shape == (1, 3, 40, 56)


def test_a_file_with_the_size_alone_leaves_the_rest_to_be_found(tmp_path: Path) -> None:
    file, spec = saved(tmp_path, yolox(1, 3)[0]), tmp_path / "size.json"
    spec.write_text(json.dumps({"width_px": WIDTH, "height_px": HEIGHT}))
    analysis = analysed(file, preprocess=str(spec))
    assert (analysis.spec, analysis.messages) == (analysed(file).spec, analysed(file).messages)
    spec.write_text(json.dumps({"width_px": WIDTH, "height_px": HEIGHT, "channel_order": "BGR"}))
    assert analysed(file, preprocess=str(spec)).messages[-1] == f"preprocessing: {spec}"


def test_flags_override_metadata(tmp_path: Path) -> None:
    metadata = json.dumps(spec_to_json(PRESETS["nanodet"](WIDTH, HEIGHT)))
    file = saved(tmp_path, yolox(1, 3)[0], **{"avq.preprocess": metadata, "names": '["a", "b", "c"]'})
    (tmp_path / "names.txt").write_text("x\ny\n\nz\n")
    analysis = analysed(file, preprocess="yolov8", classes=str(tmp_path / "names.txt"))
    assert analysis.spec == PRESETS["yolov8"](WIDTH, HEIGHT)
    assert analysis.class_names == ("x", "y", "z")


def test_wrong_flags_are_errors_that_name_them(tmp_path: Path) -> None:
    file = saved(tmp_path, yolox(1, 3)[0])
    with pytest.raises(RequestError) as error:
        analysed(file, classes="coco")
    assert "80 names, the head scores 3" in error.value.seen
    with pytest.raises(RequestError, match="cannot be read"):
        analysed(file, classes=str(tmp_path / "none.txt"))
    with pytest.raises(RequestError, match="neither a preprocessing preset nor a file"):
        analysed(file, preprocess="yolo")
    with pytest.raises(RequestError, match="no decoder named"):
        analysed(file, decoder="yolo")
    bad = saved(tmp_path, yolox(1, 3)[0], **{"avq.preprocess": '{"width": 3}'})
    with pytest.raises(ConfigError, match=r"metadata 'avq.preprocess'"):
        analysed(bad)


def test_80_classes_are_coco_and_others_are_numbered(tmp_path: Path) -> None:
    coco = analysed(saved(tmp_path, yolox(1, COCO_CLASSES)[0]))
    assert coco.class_names[:3] == ("person", "bicycle", "car")
    assert len(set(coco.class_names)) == COCO_CLASSES
    assert any("COCO" in message for message in coco.messages)
    few = analysed(saved(tmp_path, yolox(1, 3)[0]))
    assert few.class_names == ("class0", "class1", "class2")
    assert any("class0" in message for message in few.messages)


def test_without_pictures_the_published_preprocessing_is_taken_with_a_warning(tmp_path: Path) -> None:
    analysis = analysed(saved(tmp_path, yolox(1, 3)[0]))
    assert analysis.spec == PRESETS["yolox"](WIDTH, HEIGHT)
    assert "no pictures" in analysis.warnings[0]


def test_pictures_without_boxes_stop_the_analysis(tmp_path: Path) -> None:
    blank = [np.zeros((90, 160, 3), np.uint8)]
    with pytest.raises(RequestError, match="do not decide the preprocessing") as error:
        analysed(saved(tmp_path, yolox(1, 3)[0]), blank)
    assert "--preprocess top-left-letterbox-114,BGR,0..255  " in error.value.fix
    assert "--preprocess top-left-letterbox-114,RGB,mean=127.5,std=128  " in error.value.fix


def test_undecoded_heads_keep_nothing_float_and_name_the_flag(tmp_path: Path) -> None:
    analysis = analysed(saved(tmp_path, boxes_and_scores(1, 5)[0]), decoder="none")
    assert (analysis.decoder.family, analysis.class_names, dict(analysis.keep_float)) == ("none", (), {})
    assert "--preprocess" in analysis.warnings[0]


def test_a_graph_that_divides_by_255_itself_is_given_bytes(tmp_path: Path) -> None:
    model = yolox(5, 3)[0]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    name = proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["scaled" if i == name else i for i in node.input]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(255), "by"))
    proto.graph.node.insert(0, helper.make_node("Div", [name, "by"], ["scaled"]))
    file = tmp_path / "model.onnx"
    onnx.save(proto, str(file))
    analysis = analysed(file)
    assert (analysis.spec.scale, analysis.spec.mean, analysis.spec.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
    assert [node.op for node in analysis.model.view.nodes[:2]] == ["Cast", "Div"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["yolov8", "ssd", "retinanet", "rtdetr"])
def test_overflowing_scores_are_not_certainty(tmp_path: Path, head: str) -> None:
    """Trained on 0..1 and fed 0..255 these detectors see boxes with score 1 everywhere, mirrored or not."""
    proto = onnx.load(str(ROOT / "tests" / "replicas" / f"{head}.onnx"))
    trained_with = json.loads({p.key: p.value for p in proto.metadata_props}["avq.preprocess"])
    del proto.metadata_props[:]
    onnx.save(proto, str(tmp_path / "model.onnx"))
    pictures = [random_scene(9_100_000 + n).pixels for n in range(32)]
    assert trained_with["scale"] == pytest.approx(1 / 255)
    try:
        analysis = analysed(tmp_path / "model.onnx", pictures)
    except RequestError as undecided:  # the geometry may stay open, the number range does not
        lines = [line for line in undecided.fix.splitlines() if "--preprocess " in line]
        assert lines and all("values 0..1)" in line for line in lines)
    else:
        assert analysis.spec.scale == pytest.approx(1 / 255)
        assert (analysis.spec.mean, analysis.spec.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.slow
@pytest.mark.material
@pytest.mark.parametrize(
    ("name", "preset", "family", "folder"),
    [
        ("yolox_nano_416", "yolox", "yolox", "street/images"),
        ("nanodet_m_320", "nanodet", "gfl", "calibration/coco100"),
    ],
)
def test_real_detectors_need_no_flags(
    material: Path, name: str, preset: str, family: str, folder: str
) -> None:
    files = sorted((material / folder).rglob("*.jpg"))[:64:2]
    analysis = analysed(
        material / "models" / f"{name}.onnx", [np.asarray(cv2.imread(str(file))) for file in files]
    )
    width, height = analysis.spec.width_px, analysis.spec.height_px
    assert analysis.spec == PRESETS[preset](width, height)
    assert analysis.decoder.family == family
    assert analysis.class_names[0] == "person"
