"""The picture's numbers are made inside the graph, exactly as preprocessing in float would."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.frontend.fold_input import fold_input
from avq.builder.graph.model import FloatModel
from avq.errors import ModelError
from avq.preprocess import PRESETS
from avq.types import PreprocessSpec
from tests.decoders.head_replicas import HEIGHT, WIDTH, Net, load


def identity_network() -> FloatModel:
    """y = x, through a layer, so that what arrives can be read."""
    net = Net(1)
    weight = net.const(np.eye(3).reshape(3, 3, 1, 1))
    return load(net.model(net.op("Conv", net.input, weight, kernel_shape=[1, 1])))


NETWORK = identity_network()


def arriving(spec: PreprocessSpec, pixels: np.ndarray) -> np.ndarray:
    model = fold_input(NETWORK, spec)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.proto.SerializeToString(), options)
    return session.run(None, {model.view.inputs[0].name: pixels})[0]


PIXELS = np.random.default_rng(0).integers(0, 256, (1, 3, HEIGHT, WIDTH), np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([1.0, 1 / 255.0, 1 / 127.5]),
    st.tuples(*[st.floats(-200, 200, width=32)] * 3),
    st.tuples(*[st.floats(0.015625, 200, width=32)] * 3),
)
def test_numbers_equal_float_preprocessing(scale: float, mean: Any, std: Any) -> None:
    spec = PreprocessSpec(width_px=WIDTH, height_px=HEIGHT, scale=scale, mean=mean, std=std)
    m, s = (np.array(v, np.float64).reshape(1, 3, 1, 1) for v in (mean, std))
    expected = (PIXELS.astype(np.float64) * scale - m) / s
    span = np.maximum(np.abs(PIXELS * scale), np.abs(m)) / s  # two numbers that cancel keep their own error
    error = np.abs(arriving(spec, PIXELS) - expected)
    assert np.all(error <= 1e-5 * np.maximum(span, 1e-6))


@pytest.mark.parametrize(
    ("preset", "ops"),
    [
        ("yolox", ["Cast", "Conv"]),
        ("yolov8", ["Cast", "Mul", "Conv"]),
        ("nanodet", ["Cast", "Mul", "Add", "Conv"]),
        ("imagenet", ["Cast", "Mul", "Add", "Conv"]),
    ],
)
def test_only_what_changes_something_is_added(preset: str, ops: list[str]) -> None:
    model = fold_input(NETWORK, PRESETS[preset](WIDTH, HEIGHT))
    assert [node.op for node in model.view.nodes] == ops
    assert model.view.inputs[0].dtype == "uint8"
    assert model.view.inputs[0].name == NETWORK.view.inputs[0].name
    assert model.view.outputs == NETWORK.view.outputs
    assert NETWORK.view.inputs[0].dtype == "float32", "the source stays as it is"
    assert model.view.digest != NETWORK.view.digest
    assert all(model.view.shape(n.outputs[0]) is not None for n in model.view.nodes)


def test_one_number_for_all_channels_is_one_number() -> None:
    model = fold_input(NETWORK, PRESETS["yolov8"](WIDTH, HEIGHT))
    scale = model.view.nodes[1].inputs[1]
    assert model.view.constants[scale].shape == (1, 1, 1, 1)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="has not the shape"):
        fold_input(NETWORK, PRESETS["yolov8"](WIDTH, WIDTH))


def test_a_network_that_takes_bytes_is_left_as_it_is() -> None:
    folded = fold_input(NETWORK, PRESETS["nanodet"](WIDTH, HEIGHT))
    assert fold_input(folded, PRESETS["nanodet"](WIDTH, HEIGHT)) is folded
