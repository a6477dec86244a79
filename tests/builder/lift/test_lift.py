"""What a lift promises beside equality: points per edge, names kept, files of real exporters, and an honest proof."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from avq_qat.strategy import resymmetrized
from onnx import numpy_helper
from onnxruntime import quantization

from avq.builder.frontend.fold_input import fold_input, normalise_picture
from avq.builder.lift import (
    import_model,
    is_quantized,
    lift,
    lift_dynamic,
    on_folded_input,
    prove,
    prove_products,
    runnable,
)
from avq.builder.lift.clipping import ends_at, starts_at_zero
from avq.builder.lift.grid import make_grid
from avq.builder.lower import lower
from avq.builder.planning import reference_encoding
from avq.decoders import recognise
from avq.errors import ModelError
from avq.preprocess import Preprocessor, spec_from_json
from avq.types import Edge, PreprocessSpec, QuantizationPlan
from tests.builder.lift.corpus import nets
from tests.builder.lift.corpus.dialects import ModelOptimizer, OnnxruntimeQdq, PytorchQuantization, Qonnx
from tests.builder.lift.corpus.faults import FAULTS
from tests.builder.lift.corpus.importing import ENGINE, lowered, quantized_by_onnxruntime, sqnr_db
from tests.builder.lift.corpus.writer import pictures, run
from tests.decoders.head_replicas import yolov8

REAL = {
    "retinaface_320_vitisai_qdq.onnx": ("vitisai-qdq", 162),
    "twinlitenet_ort_static.onnx": ("onnxruntime-qdq", 196),
    "qonnx_espcn_subpixel_quant.onnx": ("qonnx", 8),
}


def _points(imported: Any) -> dict[Edge, Any]:
    return {point.edge: point for point in imported.foreign.points}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_files_of_real_exporters_are_imported_to_the_bit(material: Path, name: Any) -> None:
    dialect, count = REAL[name]
    imported = import_model(onnx.load(str(material / "quantized" / name)), where=name)
    assert (imported.foreign.dialect, len(imported.foreign.points)) == (dialect, count)
    picture = imported.model.view.inputs[0]
    rng = np.random.default_rng(0)
    feeds = [{picture.name: rng.uniform(0, 1, picture.shape).astype(np.float32)} for _ in range(2)]
    proof = prove(imported.source, lowered(imported), ENGINE, [(f, f) for f in feeds], threads=2)
    assert proof.exact, proof.summary


def test_a_file_without_inputs_is_lifted_to_the_bit(material: Path) -> None:
    """Its picture is a constant, which a build refuses and a lift need not."""
    source = onnx.load(str(material / "quantized" / "polygraphy_qdq_conv.onnx"))
    bare, foreign = lift(source)
    bare = onnx.shape_inference.infer_shapes(bare)
    (point,) = foreign.points
    assert (point.edge, point.signed, point.scale.shape) == (Edge("x"), False, (3,))
    ours = lower(bare, QuantizationPlan("", foreign.points), "asymmetric")
    meant, found = run(source, {}), run(ours, {})
    for name, value in meant.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.slow
def test_a_real_file_with_run_time_scales_has_no_plan_but_a_float_model(material: Path) -> None:
    source = onnx.load(str(material / "quantized" / "twinlitenet_ort_dynamic.onnx"))
    with pytest.raises(ModelError, match="AVQ-Q33") as refusal:
        import_model(source, where="twinlitenet_ort_dynamic.onnx")
    assert "--strategy static" in refusal.value.fix
    proof = prove_products(runnable(source, None), ENGINE)
    assert proof is not None and proof.equal, proof
    feed = {"input": np.random.default_rng(0).random((1, 3, 160, 320), np.float32)}
    meant, actual = run(source, feed), run(lift_dynamic(source), feed)
    assert min(sqnr_db(value, actual[name]) for name, value in meant.items()) > 35.0


def test_float_files_are_no_imports(material: Path) -> None:
    for name in ("twinlitenet_float_parent.onnx", "qonnx_espcn_subpixel_float.onnx"):
        assert not is_quantized(onnx.load(str(material / "quantized" / name)))


def test_onnxruntimes_own_quantizer_is_imported_to_the_bit(tmp_path: Path) -> None:
    """Not a file written by these tests: the exporter itself, with the settings people use."""
    source = quantized_by_onnxruntime(nets.residual().model(), pictures(4), tmp_path)
    imported = import_model(source, where="file")
    assert imported.foreign.dialect == "onnxruntime-qdq"
    for picture in pictures(3, seed=4):
        np.testing.assert_array_equal(
            run(lowered(imported), {"x": picture})["out"], run(source, {"x": picture})["out"]
        )


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
def test_a_head_whose_bins_were_quantized_too_is_still_recognised(tmp_path: Path, kind: str) -> None:
    """With the exporter's defaults the bins 0 to 15 of a distribution lie on an 8-bit grid as well."""
    head = yolov8(3, 4)[0]
    rng = np.random.default_rng(0)
    feeds = [rng.random(head.view.inputs[0].shape, np.float32) for _ in range(2)]
    options = {"weight_type": quantization.QuantType[kind], "reduce_range": True}
    options["activation_type"] = quantization.QuantType.QUInt8
    source = quantized_by_onnxruntime(head.proto, feeds, tmp_path, **options)
    view = import_model(source, where="file").model.view
    bins = [c for c in view.constants.values() if c.size == 16 and c.max() > 14]
    assert bins and not np.allclose(bins[0].reshape(-1), np.arange(16))
    assert (recognise(view).family, recognise(view).num_classes) == ("yolov8", 4)


_CLIPPING = [
    {"activation_type": quantization.QuantType[kind], "per_channel": per_channel}
    for kind in ("QUInt8", "QInt8")
    for per_channel in (False, True)
]


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("options", _CLIPPING)
@pytest.mark.parametrize(("high", "operator"), [(None, "Relu"), (6.0, "Clip")])
def test_activations_that_a_quantizer_replaced_are_restored(
    tmp_path: Path, options: dict[str, Any], high: float | None, operator: str
) -> None:
    """The exporter removes them; the float graph needs them, on the same integers."""
    original = nets.clipped(high).model()
    source = quantized_by_onnxruntime(original, pictures(8), tmp_path, **options)
    assert _operators(source)[operator] == 0
    imported = import_model(source, where="file")
    restored = _operators(imported.model.proto)
    assert restored["Relu"] + restored["Clip"] == 4
    assert restored[operator] >= 1
    for picture in pictures(3, seed=4):
        meant = run(original, {"x": picture})["out"]
        actual = run(imported.model.proto, {"x": picture})["out"]
        assert sqnr_db(meant, actual) > 25.0
        np.testing.assert_array_equal(
            run(lowered(imported), {"x": picture})["out"], run(source, {"x": picture})["out"]
        )


@pytest.mark.parametrize("net", [nets.clipped, nets.residual, nets.joined])
def test_activations_in_the_file_are_not_doubled(net: Any) -> None:
    original = net().model()
    imported = import_model(OnnxruntimeQdq(net()).write(), where="file")
    assert _operators(imported.model.proto)["Relu"] == _operators(original)["Relu"]


@pytest.mark.parametrize(
    ("steps_off", "clips"), [(-1.1, False), (-0.9, True), (0.0, True), (0.4, True), (0.6, False)]
)
def test_an_upper_end_is_six_within_one_step_and_only_where_integers_stay(
    steps_off: float, clips: bool
) -> None:
    scale = np.float64(6.0 / (255 - steps_off))
    assert ends_at(make_grid(scale, np.int64(0), signed=False), 6.0) == clips
    assert ends_at(make_grid(scale, np.int64(-128)), 6.0) == clips


def test_a_range_starts_at_zero_only_with_the_zero_point_on_the_lowest_integer() -> None:
    assert starts_at_zero(make_grid(np.float32(1), np.int64(0), signed=False))
    assert not starts_at_zero(make_grid(np.float32(1), np.int64(1), signed=False))
    assert not starts_at_zero(make_grid(np.float32(1), np.int64(0)))
    assert starts_at_zero(make_grid(np.ones(2, np.float32), np.full(2, -128), axis=1))
    assert not starts_at_zero(make_grid(np.ones(2, np.float32), np.array([-128, 0]), axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("options", _CLIPPING)
def test_the_detector_keeps_its_activations_through_onnxruntimes_quantizer(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    root = Path(__file__).parents[3]
    original = onnx.load(str(root / "avq" / "scenes" / "detector.onnx"))
    spec = spec_from_json({p.key: p.value for p in original.metadata_props}["avq.preprocess"])
    prepare = Preprocessor(spec).prepare
    files = sorted((root / "calibration_data" / "road_scenes").glob("*.jpg"))[:8]
    feeds = [
        (prepare(np.asarray(cv2.imread(str(file)), np.uint8), copy=True).tensor / 255).astype(np.float32)
        for file in files
    ]
    source = quantized_by_onnxruntime(original, feeds, tmp_path, **options)
    assert _operators(source)["Relu"] == 0
    imported = import_model(source, where="file")
    assert _operators(imported.model.proto)["Relu"] == _operators(original)["Relu"]
    assert recognise(imported.model.view).family == "builtin"
    points = tuple(resymmetrized(imported.foreign.points))
    plan = QuantizationPlan(imported.model.view.digest, points)
    symmetric = lower(imported.model.proto, plan, "s8")
    name = original.graph.input[0].name
    for feed in feeds[:3]:
        meant = run(original, {name: feed})
        for model, box_px, score in ((imported.model.proto, 5.0, 0.05), (symmetric, 12.0, 0.15)):
            actual = run(model, {name: feed})
            firm = meant["scores"].max(axis=-1) >= 0.5
            assert np.abs(actual["boxes"] - meant["boxes"])[firm].max() < box_px
            assert np.abs(actual["scores"] - meant["scores"]).max() < score
        theirs, ours = run(source, {name: feed}), run(lowered(imported), {name: feed})
        for output, value in theirs.items():
            np.testing.assert_array_equal(ours[output], value)


def test_the_file_given_is_left_as_it_is() -> None:
    source = OnnxruntimeQdq(nets.residual()).write()
    before = source.SerializeToString(deterministic=True)
    lift(source)
    import_model(source, where="file")
    assert source.SerializeToString(deterministic=True) == before


def test_the_float_graph_has_the_outputs_and_constants_of_its_file() -> None:
    imported = import_model(OnnxruntimeQdq(nets.plain()).write(), where="file")
    assert imported.model.view.output_names == ("out",)
    assert {"c1.w", "out.w"} <= set(imported.model.view.constants)
    assert not is_quantized(imported.model.proto)


def test_one_branch_of_a_residual_alone_is_a_point_of_its_edge() -> None:
    """The convolution reads r1 quantized, the sum reads it in float."""
    imported = import_model(PytorchQuantization(nets.residual()).write(), where="file")
    points = _points(imported)
    assert Edge("r1", "c2", 0) in points
    assert Edge("r1") not in points
    assert Edge("r1", "sum", 1) not in points


def test_two_quantizers_on_one_tensor_are_two_points() -> None:
    imported = import_model(FAULTS["two-quantizers-one-tensor"].make(), where="file")
    points = _points(imported)
    one, other = points[Edge("r1", "c2", 0)], points[Edge("r1", "sum", 1)]
    assert float(other.scale) == pytest.approx(2 * float(one.scale))


def test_equal_pairs_of_several_readers_are_one_point() -> None:
    imported = import_model(ModelOptimizer(nets.joined()).write(), where="file")
    assert Edge("x") in _points(imported)


def test_marks_keep_their_places_when_the_input_is_folded() -> None:
    """Mean and scale move in front of the network; the picture's point moves behind them."""
    imported = import_model(PytorchQuantization(nets.plain()).write(), where="file")
    spec = PreprocessSpec(
        width_px=nets.SIDE_PX, height_px=nets.SIDE_PX, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    folded = fold_input(imported.model, spec)
    foreign = on_folded_input(imported.foreign, imported.model, folded)
    plan = QuantizationPlan(folded.view.digest, foreign.points)
    ours = lower(folded.proto, plan, reference_encoding(plan))
    tensor = np.random.default_rng(0).integers(0, 256, (1, 3, nets.SIDE_PX, nets.SIDE_PX), np.uint8)
    meant = run(imported.source, {"x": normalise_picture(tensor, spec)})["out"]
    np.testing.assert_array_equal(run(ours, {"x": tensor})["out"], meant)


@pytest.mark.parametrize("field", ["scale", "zero_point"])
def test_a_damaged_plan_is_not_proven(field: str) -> None:
    """The proof is worth what it catches: a scale that is 5 % off, a zero point that clips."""
    imported = import_model(OnnxruntimeQdq(nets.plain()).write(), where="file")
    points = list(imported.foreign.points)
    at = next(i for i, p in enumerate(points) if p.edge.tensor == "x")
    worse = {"scale": points[at].scale * np.float32(1.05), "zero_point": points[at].zero_point + 60}
    points[at] = replace(points[at], **{field: worse[field]})
    plan = QuantizationPlan(imported.model.view.digest, tuple(points))
    ours = lower(imported.model.proto, plan, reference_encoding(plan))
    feeds = [({"x": p}, {"x": p}) for p in pictures(2)]
    proof = prove(imported.source, ours, ENGINE, feeds)
    assert not proof.equal
    assert "AVQ-Q41" in proof.summary


def test_a_source_that_cannot_run_is_not_proven() -> None:
    model = Qonnx(nets.plain()).write()
    imported = import_model(model, where="file")
    broken = onnx.ModelProto()
    broken.CopyFrom(imported.source)
    broken.graph.node[-1].op_type = "NoSuchOperator"
    proof = prove(broken, lowered(imported), ENGINE, [])
    assert not proof.equal
    assert "cannot be run" in proof.summary


def test_one_step_of_the_last_scale_is_a_rounding_and_is_told() -> None:
    imported = import_model(OnnxruntimeQdq(nets.plain()).write(), where="file")
    ours = onnx.load_model_from_string(lowered(imported))
    bias = next(t for t in ours.graph.initializer if t.name == "out.b")
    step = float(_points(imported)[Edge("out")].scale)
    nudged = numpy_helper.to_array(bias) + np.float32(step / 3)
    bias.CopyFrom(numpy_helper.from_array(nudged.astype(np.float32), bias.name))
    feeds = [({"x": p}, {"x": p}) for p in pictures(2)]
    proof = prove(imported.source, ours.SerializeToString(), ENGINE, feeds, last_step={"out": step})
    assert (proof.equal, proof.exact) == (True, False)
    assert "within one step" in proof.summary


def test_the_same_file_gives_the_same_plan() -> None:
    digests = {
        as_read_digest(import_model(OnnxruntimeQdq(nets.residual()).write(), where="file")) for _ in range(2)
    }
    assert len(digests) == 1


def as_read_digest(imported: Any) -> str:
    return QuantizationPlan(imported.model.view.digest, imported.foreign.points).digest
