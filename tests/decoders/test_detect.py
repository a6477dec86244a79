"""Candidates to detections: thresholds, class-wise NMS, the way back to the picture, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avq.builder.graph.model import load_graph
from avq.decoders import DetectionDecoder, named, recognise
from avq.decoders.detect import check_finite
from avq.errors import DataError, ModelError, RequestError
from avq.preprocess import PRESETS, Preprocessor
from avq.scenes import builtin_detector_path
from avq.types import DecoderSpec, ModelInput
from tests.decoders.head_replicas import HEIGHT, WIDTH, Net, boxes_and_scores, load, run, yolov8, yolox


class Rows:
    """A family whose raw output already is x0, y0, x1, y1, score, class."""

    family = "rows"
    nms_in_graph = False

    def candidates(self, raw: Any, spec: Any, score_threshold: Any) -> Any:
        rows = raw["rows"][raw["rows"][:, 4] >= score_threshold]
        return rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)


def given(scale: float = 1.0, shift: float = 0.0, size: Any = (100, 80)) -> ModelInput:
    affine = np.array([[scale, 0.0, shift], [0.0, scale, shift]])
    return ModelInput(np.zeros((1, 3, 80, 100), np.uint8), affine, size)


def decode(rows: Any, model_input: Any = None, **settings: Any) -> Any:
    decoder = DetectionDecoder(DecoderSpec("rows", num_classes=3, **settings), [cast(Any, Rows())])
    return decoder.decode({"rows": np.array(rows, np.float32).reshape(-1, 6)}, model_input or given())


def test_boxes_of_one_class_that_overlap_lose_to_the_best_others_stay() -> None:
    found = decode(
        [
            [10, 10, 30, 30, 0.6, 0],
            [11, 10, 31, 30, 0.9, 0],
            [11, 10, 31, 30, 0.7, 1],
            [60, 60, 70, 70, 0.8, 0],
        ]
    )
    assert found.class_ids.tolist() == [0, 0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_boxes_are_mapped_clipped_and_dropped_outside_the_picture() -> None:
    found = decode(
        [[-4, 2, 10, 12, 0.9, 0], [60, 2, 70, 12, 0.8, 0], [20, 20, 20, 30, 0.7, 0]], given(scale=2.0)
    )
    np.testing.assert_allclose(found.boxes_xyxy_px, [[0, 4, 20, 24]])


def test_only_max_detections_and_scores_above_the_threshold_come_out() -> None:
    rows = [[10 * i, 0, 10 * i + 8, 8, 0.2 + 0.1 * i, 0] for i in range(8)]
    assert decode(rows, score_threshold=0.45).scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert decode(rows, score_threshold=0.45, max_detections=2).scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(decode([], score_threshold=0.1)) == 0


def test_frame_identity_and_threshold_override_travel_through() -> None:
    decoder = DetectionDecoder(DecoderSpec("rows"), [cast(Any, Rows())])
    raw = {"rows": np.array([[0, 0, 5, 5, 0.2, 1]], np.float32)}
    assert len(decoder.decode(raw, given())) == 0
    found = decoder.decode(raw, given(), camera="front", seq=7, t_capture_ns=11, score_threshold=0.1)
    assert (found.camera, found.seq, found.t_capture_ns, len(found)) == ("front", 7, 11, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_an_error_naming_the_output(bad: float) -> None:
    model = boxes_and_scores(1, 5)[0]
    raw = {name: value.copy() for name, value in run(model).items()}
    name = model.view.output_names[1]
    raw[name][0, 3, 2] = bad
    with pytest.raises(DataError, match=name) as error:
        DetectionDecoder(recognise(model.view)).decode(raw, given())
    assert "1 of" in error.value.seen


@hypothesis.given(
    kind=st.sampled_from([np.float16, np.float32, np.float64]),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 40)),
    largest=st.booleans(),
    bad=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([np.nan, np.inf, -np.inf])), max_size=3
    ),
    turned=st.booleans(),
    locked=st.booleans(),
)
def test_each_number_that_is_not_finite_is_seen_and_no_large_one_is_mistaken_for_it(
    kind: type,
    shape: tuple[int, int, int],
    largest: bool,
    bad: list[tuple[float, float]],
    turned: bool,
    locked: bool,
) -> None:
    values: np.ndarray = np.full(shape, np.finfo(kind).max if largest else 0.5, kind)
    for share, value in bad if values.size else []:
        values.reshape(-1)[int(share * values.size)] = value
    count = int(values.size - np.isfinite(values).sum())
    values = values.T if turned else values
    values.flags.writeable = not locked
    if not count:
        check_finite({"o": values, "ids": np.arange(3)})
        return
    with pytest.raises(DataError) as error:
        check_finite({"o": values})
    assert error.value.seen == f"{count} of {values.size} are NaN or Inf"


def test_a_missing_output_is_named() -> None:
    model = yolov8(1, 3)[0]
    with pytest.raises(ModelError, match=model.view.output_names[0]):
        DetectionDecoder(recognise(model.view)).decode({}, given())


def test_an_undecoded_head_gives_no_boxes() -> None:
    spec = named("none", boxes_and_scores(1, 5)[0].view)
    assert len(DetectionDecoder(spec).decode({"anything": np.ones(3, np.float32)}, given())) == 0


def test_a_network_box_lands_on_the_picture_it_came_from() -> None:
    model = yolox(4, 3, decoded=True)[0]
    pixels = np.random.default_rng(0).integers(0, 255, (90, 250, 3), np.uint8)
    prepared = Preprocessor(PRESETS["yolov8"](WIDTH, HEIGHT)).prepare(pixels)
    found = DetectionDecoder(recognise(model.view)).decode(run(model), prepared, score_threshold=0.2)
    assert len(found) > 0
    assert np.all(found.boxes_xyxy_px >= 0)
    assert np.all(found.boxes_xyxy_px[:, [0, 2]] <= 250)
    assert np.all(found.boxes_xyxy_px[:, [1, 3]] <= 90)
    assert np.all(np.diff(found.scores) <= 0)


def test_unknown_heads_and_names_say_what_is_known() -> None:
    net = Net(5)
    graph = load(net.model(net.op("Relu", net.conv(net.levels()[0][0], 8, 2)))).view
    with pytest.raises(ModelError) as error:
        recognise(graph)
    assert "1x2x8x16" in error.value.seen
    assert "yolov8" in error.value.seen
    assert "--decoder none" in error.value.fix
    with pytest.raises(RequestError, match="yolov9") as unknown:
        named("yolov9", graph)
    assert "did you mean" in unknown.value.fix
    with pytest.raises(ModelError, match="do not match a yolox head") as error:
        named("yolox", yolov8(6, 3)[0].view)
    assert "yolov8" in error.value.fix


def test_two_fitting_families_are_told_and_the_more_specific_taken() -> None:
    graph = yolov8(7, 3)[0].view

    class Anything:
        family = "anything"

        def recognise(self, graph: Any) -> Any:
            return DecoderSpec("anything")

    from avq.decoders import builtin_decoders

    spec = recognise(graph, (*builtin_decoders(), cast(Any, Anything())))
    assert spec.family == "yolov8"
    assert any("anything" in note for note in spec.params["notes"])


def test_outputs_beside_a_known_head_are_the_reason_of_its_refusal() -> None:
    graph = load_graph(builtin_detector_path()).view
    beside = replace(graph, outputs=(*graph.outputs, replace(graph.outputs[0], name="stage5.relu")))
    with pytest.raises(ModelError) as error:
        recognise(beside)
    assert "builtin" in error.value.what and "'stage5.relu'" in error.value.what
    assert all(f"'{output.name}'" in error.value.fix for output in graph.outputs)


def test_layers_that_onnxruntime_fused_are_the_reason_of_a_refusal() -> None:
    graph = load_graph(builtin_detector_path()).view
    hidden = replace(graph.nodes[0], op="NhwcFusedConv", domain="com.microsoft")
    with pytest.raises(ModelError) as error:
        recognise(replace(graph, nodes=(hidden, *graph.nodes[1:]), outputs=graph.outputs[:1]))
    assert "NhwcFusedConv" in error.value.seen and "before onnxruntime" in error.value.fix
