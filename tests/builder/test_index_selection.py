"""Which outputs a graph puts in order is found by putting in other choices, whatever stands between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from avq.builder import build
from avq.builder.index_selection import selected_rows
from avq.bundle import OpenBundle, open_bundle
from avq.engines import engine_by_name
from avq.engines.cpu import instruction_set
from avq.measure.golden import golden_inputs, run_golden
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.types import Recipe, SessionOptions
from tests.builder.cross_compile.test_same_indices import PICTURES, detector, opened, suppressing
from tests.e2e.conftest import CALIBRATION
from tests.engines.null import NullSession

RTDETR = Path(__file__).parents[1] / "replicas" / "rtdetr.onnx"


def blurred(side: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).random((*side, 3)).astype(np.float32)
    return np.ascontiguousarray(cv2.GaussianBlur(noise, (0, 0), 5).transpose(2, 0, 1)[None])


def test_boxes_and_scores_behind_one_topk_are_ordered_alike_and_labels_of_all_rows_are_not() -> None:
    assert selected_rows(detector(), opened, PICTURES).places == {"boxes": (1, 0), "best": (1, 0)}


def test_what_suppression_keeps() -> None:
    assert selected_rows(suppressing(0.0), opened, PICTURES[:1]).places == {"out": (0, 0)}


def test_queries_chosen_before_a_transformer() -> None:
    """Their attention adds them up in another order: the rows differ by rounding."""
    model = onnx.load(RTDETR)
    names = [value.name for value in model.graph.output]
    places = selected_rows(model.SerializeToString(), opened, [blurred((192, 320))]).places
    assert places == dict.fromkeys(names, (1, 0))


def test_a_graph_that_chooses_nothing() -> None:
    plain = onnx.load_model_from_string(detector())
    kept = [n for n in plain.graph.node if n.name in ("cast", "line", "matmul", "to_rows")]
    del plain.graph.node[:], plain.graph.output[:]
    plain.graph.node.extend(kept)
    plain.graph.output.append(onnx.helper.make_tensor_value_info("all_boxes", 1, None))
    assert selected_rows(plain.SerializeToString(), opened, PICTURES).places == {}


@pytest.fixture(scope="module")
def undecoded(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    """A detector that chooses its queries, built without a decoder."""
    output = tmp_path_factory.mktemp("bundles") / "undecoded.avq"
    recipe = Recipe(
        model=RTDETR, output=output, data=CALIBRATION, strategy="float", decoder="none", target="onnxruntime",
        gate=False,
    )  # fmt: skip
    build(recipe, PluginHost(), Silent())
    return open_bundle(output, allow_unaccepted=True)


class Changed(NullSession):
    """An engine that gives the golden answers, changed."""

    def __init__(self, bundle: OpenBundle, change: Any) -> None:
        super().__init__({}, 0, "f32")
        self._arrays, self._change = bundle.arrays("golden.npz"), change

    def infer(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        number = next(n for n in range(4) if np.array_equal(self._arrays[f"input_{n}"], tensor))
        mark = f"output_{number}:"
        return self._change(
            {name[len(mark) :]: value for name, value in self._arrays.items() if name.startswith(mark)}
        )


def turned(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[:, ::-1] for name, value in answers.items()}


def one_turned(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = next(iter(answers))
    return {**answers, name: answers[name][:, ::-1]}


def some_lost(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The last quarter gives way to copies of the first row."""
    return {
        name: np.where(np.arange(60)[:, None] < 45, value, value[:, :1]) for name, value in answers.items()
    }


def fewer(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[:, :30] for name, value in answers.items()}


def louder(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value * np.float32(1.02) for name, value in answers.items()}


def not_a_number(answers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value * np.float32(np.nan) for name, value in answers.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "right"),
    [
        (dict, True), (turned, True), (one_turned, False), (some_lost, False), (fewer, False), (louder, False),
        (not_a_number, False),
    ],
)  # fmt: skip
def test_the_order_of_chosen_rows_decides_nothing_and_what_they_hold_does(
    undecoded: OpenBundle, monkeypatch: pytest.MonkeyPatch, change: Any, right: bool
) -> None:
    answer = run_golden(undecoded, Changed(undecoded, change))
    assert answer.passed is right, answer.reason


@pytest.mark.slow
def test_another_engine_whose_rounding_turns_rows_round_is_right(undecoded: OpenBundle) -> None:
    if not {"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_set().split()):
        pytest.skip("this processor has no bf16, and openvino offers none")
    session = engine_by_name("openvino").open(undecoded.read("model.onnx"), SessionOptions(precision="bf16"))
    try:
        answer = run_golden(undecoded, session)
        arrays = undecoded.arrays("golden.npz")
        name = next(iter(session.infer(golden_inputs(undecoded)[0])))
        said = np.array(session.infer(arrays["input_1"])[name])
    finally:
        session.close()
    assert answer.passed and (answer.worst_sqnr_db or 0.0) > 35.0, answer.reason
    if session.precision == "bf16":  # as it is where the processor has it
        assert np.square(said - arrays[f"output_1:{name}"]).mean() > 0.01 * np.square(said).mean(), (
            "row by row"
        )
