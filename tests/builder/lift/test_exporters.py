"""Files that onnxruntime's own quantizers write, in the settings people use: the import and its float model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType

from avq.builder.frontend import analyse
from avq.builder.frontend.fold_input import normalise_picture
from avq.builder.graph.model import normalise
from avq.builder.lift import (
    Imported,
    import_model,
    in_qdq_form,
    is_dynamic,
    is_quantized,
    lift_dynamic,
    part_parity,
    prove,
    prove_operators,
    prove_products,
    runnable,
)
from avq.builder.lift.dynamic import lifted_products
from avq.builder.lift.part_parity import with_unsigned_weights
from avq.errors import ModelError
from avq.preprocess import PRESETS, Preprocessor, spec_from_json
from tests.builder.lift.corpus import nets
from tests.builder.lift.corpus.importing import ENGINE, lowered, quantized_by_onnxruntime, sqnr_db
from tests.builder.lift.corpus.writer import pictures, run

STATIC: dict[str, dict[str, Any]] = {
    "defaults": {},
    "signed symmetric": {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "signed per tensor": {"activation_type": QuantType.QInt8, "per_channel": False},
    "pairs on weights": {"extra_options": {"AddQDQPairToWeight": True}},
    "percentile": {"calibrate_method": CalibrationMethod.Percentile},
    "entropy": {"calibrate_method": CalibrationMethod.Entropy},
    "int16": {"activation_type": QuantType.QUInt16, "extra_options": {"UseQDQContribOps": True}},
    "dedicated pairs": {"extra_options": {"DedicatedQDQPair": True}},
    "integer operators": {"quant_format": QuantFormat.QOperator},
    "integer operators, signed": {
        "quant_format": QuantFormat.QOperator,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": False,
    },
}
DYNAMIC: dict[str, dict[str, Any]] = {
    "unsigned": {"weight_type": QuantType.QUInt8},
    "signed": {"weight_type": QuantType.QInt8},
    "per channel": {"weight_type": QuantType.QUInt8, "per_channel": True},
    "products only": {"weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]},
}
NETS: dict[str, Callable[[], nets.Net]] = {
    "relu": nets.clipped,
    "relu6": lambda: nets.clipped(6.0),
    "silu": nets.depthwise,
    "joined": nets.joined,
    "linear": nets.linear,
    "attention": nets.moved,
}


def quantized_dynamically(model: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    onnx.save(model, str(folder / "float.onnx"))
    quantization.quantize_dynamic(str(folder / "float.onnx"), str(folder / "dynamic.onnx"), **options)
    return onnx.load(str(folder / "dynamic.onnx"))


def _clips(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("Relu", "Clip") for node in model.graph.node)


def _check_import(original: onnx.ModelProto, source: onnx.ModelProto, feeds: list[np.ndarray]) -> Imported:
    """The import equals the file to the bit, in Q/DQ form where it has integers, with the original's activations."""
    imported = import_model(source, where="file")
    assert not imported.foreign.errors
    operators = prove_operators(imported.source, ENGINE) if in_qdq_form(source) is not source else None
    assert operators is None or operators.equal, operators
    name = original.graph.input[0].name
    proof = prove(
        in_qdq_form(imported.source), lowered(imported), ENGINE, [({name: f}, {name: f}) for f in feeds[:2]]
    )
    assert proof.exact, proof.summary
    assert _clips(imported.model.proto) == _clips(original)
    return imported


def _check_static(original: onnx.ModelProto, source: onnx.ModelProto, feeds: list[np.ndarray]) -> None:
    """The import is exact, and its float model is the original's but for the rounding of weights."""
    imported = _check_import(original, source, feeds)
    name = original.graph.input[0].name
    for output in imported.model.view.output_names:
        meant, actual = (run(m, {name: feeds[0]})[output] for m in (original, imported.model.proto))
        assert sqnr_db(meant, actual) > 30.0


@pytest.mark.parametrize("setting", STATIC)
@pytest.mark.parametrize("net", ["relu", "relu6", "silu", "joined", "linear"])
def test_static_files_are_imported_exactly_with_the_right_float_model(
    tmp_path: Path, net: str, setting: str
) -> None:
    original = NETS[net]().model()
    source = quantized_by_onnxruntime(original, pictures(8), tmp_path, **STATIC[setting])
    assert is_quantized(source)
    _check_static(original, source, pictures(2, seed=4))


@pytest.mark.parametrize("setting", DYNAMIC)
@pytest.mark.parametrize("net", NETS)
def test_dynamic_files_are_read_as_float_models(tmp_path: Path, net: str, setting: str) -> None:
    original = NETS[net]().model()
    source = quantized_dynamically(original, tmp_path, **DYNAMIC[setting])
    if not is_dynamic(source):
        pytest.skip("this net has no such operator")
    lifted = lift_dynamic(source)
    assert not is_quantized(lifted)
    assert _clips(lifted) == _clips(original)
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and proof.equal, proof
    picture = pictures(1, seed=4)[0]
    meant, actual, weights = (
        run(m, {"x": picture})["out"] for m in (original, lifted, lift_dynamic(source, "weights"))
    )
    assert sqnr_db(meant, actual) > 25.0
    np.testing.assert_allclose(weights, actual, rtol=1e-5, atol=1e-6)


def test_weights_are_integers_minus_zero_point_times_scale(tmp_path: Path) -> None:
    original = nets.linear().model()
    source = quantized_dynamically(original, tmp_path, weight_type=QuantType.QUInt8, per_channel=True)
    stored = {t.name: numpy_helper.to_array(t) for t in source.graph.initializer}
    lifted = {t.name: numpy_helper.to_array(t) for t in lift_dynamic(source).graph.initializer}
    scale, zero_point = stored["m1.w_scale"], stored["m1.w_zero_point"].astype(np.float32)
    assert scale.shape == (4,)
    np.testing.assert_array_equal(
        lifted["m1.w"], (stored["m1.w_quantized"].astype(np.float32) - zero_point) * scale
    )


def _products_with_scales() -> onnx.ModelProto:
    """The contributed operators: MatMulIntegerToFloat, then DynamicQuantizeMatMul with a bias."""
    rng = np.random.default_rng(3)
    constants = {
        "w1": rng.integers(0, 256, (8, 6), np.uint8),
        "s1": np.linspace(0.01, 0.02, 6).astype(np.float32),
        "z1": np.full(6, 120, np.uint8),
        "w2": rng.integers(-128, 128, (6, 4)).astype(np.int8),
        "s2": np.float32(0.02).reshape(1),
        "z2": np.zeros(1, np.int8),
        "b2": rng.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="q"),
        helper.make_node(
            "MatMulIntegerToFloat",
            ["xq", "w1", "xs", "s1", "xz", "z1"],
            ["h"],
            name="first",
            domain="com.microsoft",
        ),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node(
            "DynamicQuantizeMatMul",
            ["r", "w2", "s2", "z2", "b2"],
            ["out"],
            name="second",
            domain="com.microsoft",
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=8)


def test_contributed_products_that_hold_their_scales_are_read() -> None:
    source = _products_with_scales()
    lifted = lift_dynamic(source)
    assert Counter(n.op_type for n in lifted.graph.node) == {"MatMul": 2, "Relu": 1, "Add": 1}
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and proof.equal, proof
    feed = {"x": pictures(1)[0]}
    assert sqnr_db(run(source, feed)["out"], run(lifted, feed)["out"]) > 30.0


def test_signed_weights_of_integer_products_run_as_unsigned_ones(tmp_path: Path) -> None:
    source = quantized_dynamically(nets.linear().model(), tmp_path, weight_type=QuantType.QInt8)
    moved = with_unsigned_weights(source)
    kinds = {t.name: t.data_type for t in moved.graph.initializer}
    weights = [n.input[1] for n in moved.graph.node if n.op_type in ("ConvInteger", "MatMulInteger")]
    assert weights and all(kinds[name] == TensorProto.UINT8 for name in weights)
    assert prove_products(runnable(source, None), ENGINE) is not None


@pytest.mark.parametrize("part", ["weight", "zero_point"])
def test_a_wrong_weight_is_not_proven(tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = quantized_dynamically(nets.plain().model(), tmp_path, weight_type=QuantType.QUInt8)

    def damaged(model: onnx.ModelProto) -> onnx.ModelProto:
        products = lifted_products(model)
        weight = next(t for t in products.graph.initializer if len(t.dims) == 4)
        values = numpy_helper.to_array(weight).copy()
        if part == "weight":
            values[0] *= np.float32(1.02)
        else:
            values += np.float32(np.abs(values).max() / 255)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        return products

    monkeypatch.setattr(part_parity, "lifted_products", damaged)
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and not proof.equal and "AVQ-Q41" in proof.summary


def test_a_product_that_nothing_scales_is_refused_by_name(tmp_path: Path) -> None:
    source = quantized_dynamically(nets.plain().model(), tmp_path, weight_type=QuantType.QUInt8)
    cast = next(n for n in source.graph.node if n.op_type == "Cast")
    cast.op_type, cast.input[:] = "Cast", ["x_zero_point"]
    with pytest.raises(ModelError, match="AVQ-Q34") as refusal:
        lift_dynamic(source)
    assert "ConvInteger" in refusal.value.seen


def test_a_file_that_no_strategy_can_read_is_not_sent_to_qat(tmp_path: Path) -> None:
    """The first refusal gives the reason itself."""
    source = _products_with_scales()
    source.graph.node[1].op_type = "MatMulNBits"
    onnx.save(source, str(tmp_path / "m.onnx"))
    with pytest.raises(ModelError) as refusal:
        analyse._source(tmp_path / "m.onnx", None, None, imports=False)
    assert "AVQ-Q34" in refusal.value.what and "qat" not in refusal.value.fix


@pytest.fixture(scope="module")
def detector() -> tuple[onnx.ModelProto, list[np.ndarray]]:
    root = Path(__file__).parents[3]
    model = onnx.load(str(root / "avq" / "scenes" / "detector.onnx"))
    spec = spec_from_json({p.key: p.value for p in model.metadata_props}["avq.preprocess"])
    files = sorted((root / "calibration_data" / "road_scenes").glob("*.jpg"))[:6]
    prepared = [
        Preprocessor(spec).prepare(np.asarray(cv2.imread(str(f)), np.uint8), copy=True) for f in files
    ]
    return model, [(p.tensor / 255).astype(np.float32) for p in prepared]


def _check_boxes(original: onnx.ModelProto, lifted: onnx.ModelProto, feed: np.ndarray) -> None:
    name = original.graph.input[0].name
    meant, actual = run(original, {name: feed}), run(lifted, {name: feed})
    firm = meant["scores"].max(axis=-1) >= 0.5
    assert firm.any()
    assert np.abs(actual["boxes"] - meant["boxes"])[firm].max() < 8.0
    assert np.abs(actual["scores"] - meant["scores"]).max() < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("setting", STATIC)
def test_the_detector_in_every_static_setting(
    detector: tuple[onnx.ModelProto, list[np.ndarray]], tmp_path: Path, setting: str
) -> None:
    original, feeds = detector
    source = quantized_by_onnxruntime(original, feeds, tmp_path, **STATIC[setting])
    _check_static(original, source, feeds)
    _check_boxes(original, import_model(source, where="file").model.proto, feeds[0])


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["unsigned", "signed", "per channel"])
def test_the_detector_quantized_at_run_time(
    detector: tuple[onnx.ModelProto, list[np.ndarray]], tmp_path: Path, setting: str
) -> None:
    original, feeds = detector
    source = quantized_dynamically(original, tmp_path, **DYNAMIC[setting])
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and proof.equal, proof
    _check_boxes(original, normalise(lift_dynamic(source)).proto, feeds[0])


@pytest.mark.slow
def test_a_published_dynamic_file_gives_the_boxes_of_its_float_sibling(material: Path) -> None:
    """yolov8n_320 holds the integers of yolov8n_int8dyn times their scales, computed without avq."""
    zoo = material / "zoo"
    if not (zoo / "yolov8n_int8dyn.onnx").exists():
        pytest.skip("no zoo in the material")
    lifted = normalise(lift_dynamic(onnx.load(str(zoo / "yolov8n_int8dyn.onnx")))).proto
    sibling = normalise(onnx.load(str(zoo / "yolov8n_320.onnx"))).proto
    feed = np.random.default_rng(0).random((1, 3, 320, 320), np.float32)
    meant, actual = (next(iter(run(m, {m.graph.input[0].name: feed}).values())) for m in (sibling, lifted))
    np.testing.assert_allclose(actual, meant, atol=1e-3)


@pytest.fixture(scope="module")
def yolox(material: Path) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """In opset 13: runtimes open scales per channel as they are."""
    model = onnx.load(str(material / "models" / "yolox_nano_416.onnx"))
    spec = PRESETS["yolox"](416, 416)
    files = sorted((material / "calibration" / "coco100").glob("*.jpg"))[:2]
    prepared = [
        Preprocessor(spec).prepare(np.asarray(cv2.imread(str(f)), np.uint8), copy=True) for f in files
    ]
    return version_converter.convert_version(model, 13), [normalise_picture(p.tensor, spec) for p in prepared]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["defaults", "integer operators"])
def test_yolox_nano_in_static_settings(
    yolox: tuple[onnx.ModelProto, list[np.ndarray]], tmp_path: Path, setting: str
) -> None:
    original, feeds = yolox
    source = quantized_by_onnxruntime(original, feeds, tmp_path, **STATIC[setting])
    imported = _check_import(original, source, feeds[:1])
    name = original.graph.input[0].name
    meant, actual = (run(m, {name: feeds[0]})["output"][0] for m in (original, imported.model.proto))
    firm = meant[:, 4] * meant[:, 5:].max(axis=1) >= 0.5
    assert firm.any()
    assert np.abs(actual - meant)[firm].max() < 0.2


@pytest.mark.slow
def test_yolox_nano_quantized_at_run_time(
    yolox: tuple[onnx.ModelProto, list[np.ndarray]], tmp_path: Path
) -> None:
    """One scale for a depthwise weight moves boxes, in the file too: the weights are compared, not the boxes."""
    source = quantized_dynamically(yolox[0], tmp_path, **DYNAMIC["signed"])
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and proof.equal, proof
    assert not is_quantized(normalise(lift_dynamic(source)).proto)


def test_integer_operators_of_old_operator_sets_are_compared(tmp_path: Path) -> None:
    """DequantizeLinear has no axis before opset 13."""
    original = nets.residual()
    original.opset = 11
    source = quantized_by_onnxruntime(original.model(), pictures(4), tmp_path, **STATIC["integer operators"])
    assert prove_operators(runnable(source, None), ENGINE) is not None
    _check_import(original.model(), source, pictures(1, seed=4))
