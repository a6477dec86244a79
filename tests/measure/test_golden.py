"""Golden frames tell the accepted engine from a wrong one, and never by the order of its boxes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from avq.bundle import EngineUse, OpenBundle, open_bundle, staging_folder, write_bundle
from avq.errors import BundleError
from avq.measure.golden import golden_inputs, limit_of, require_golden, run_golden
from avq.types import DecoderSpec
from tests.bundle.test_bundle import manifest
from tests.engines.null import NullSession

RNG = np.random.default_rng(3)
RAW = {"out": RNG.normal(size=(1, 126, 7)).astype(np.float32)}
#: x0 y0 x1 y1 score class, as a network with NMS in the graph gives them.
ROWS = np.array([[5, 5, 40, 30, 0.9, 1], [50, 20, 90, 60, 0.8, 0], [8, 40, 30, 60, 0.6, 1]], np.float32)
NMS = DecoderSpec(
    "nms_in_graph",
    {
        "layout": "table",
        "format": "xyxy",
        "normalised": False,
        "size_px": [96, 64],
        "output": "out",
        "first": 0,
        "places": [4, 5],
    },
    num_classes=2,
)


def opened(
    tmp_path: Path, outputs: dict[str, np.ndarray], precision: str = "int8+f32", **changes: Any
) -> OpenBundle:
    packed = io.BytesIO()
    picture = RNG.integers(0, 255, (1, 3, 64, 96), np.uint8)
    np.savez(
        packed, input_0=picture, **cast(Any, {f"output_0:{name}": value for name, value in outputs.items()})
    )
    engine = EngineUse(name="onnxruntime", version="1.20", precision=precision, encoding="u8")
    parts = {"model.onnx": b"model", "golden.npz": packed.getvalue()}
    folder = tmp_path / "b.avq"
    write_bundle(staging_folder(folder), folder, manifest(engine=engine, **changes), parts)
    return open_bundle(folder)


def noisy(outputs: dict[str, np.ndarray], decibel: float) -> dict[str, np.ndarray]:
    signal = float(np.sqrt(np.square(outputs["out"]).mean()))
    noise = RNG.normal(size=outputs["out"].shape) * signal * 10 ** (-decibel / 20)
    return {"out": (outputs["out"] + noise).astype(np.float32)}


@pytest.mark.parametrize(
    ("precision", "changed", "right"),
    [
        ("int8+f32", lambda: RAW, True),
        ("int8+f32", lambda: noisy(RAW, 26), True),
        ("int8+f32", lambda: noisy(RAW, 14), False),
        ("f32", lambda: noisy(RAW, 80), True),
        ("f32", lambda: noisy(RAW, 40), False),
        ("int8+f32", lambda: {"out": np.full_like(RAW["out"], np.nan)}, False),
        ("int8+f32", lambda: {"other": RAW["out"]}, False),
        ("int8+f32", lambda: {"out": RAW["out"][:, :5]}, False),
        ("int8+f32", lambda: {}, False),
    ],
    ids=["same", "rounding", "wrong", "f32", "f32-as-int8", "nan", "names", "shape", "nothing"],
)
def test_noise_decides(
    tmp_path: Path, precision: str, changed: Callable[[], dict[str, np.ndarray]], right: bool
) -> None:
    session = NullSession(changed(), 0, precision)
    bundle = opened(tmp_path, RAW, precision, decoder=None)
    answer = run_golden(bundle, session)
    assert (answer.passed, answer.frames) == (right, 1) and answer.reason
    assert golden_inputs(bundle)[0].shape == (1, 3, 64, 96)
    if right:
        assert require_golden(bundle, session) == answer
    else:
        with pytest.raises(BundleError, match="does not reproduce the golden outputs"):
            require_golden(bundle, session)


@pytest.mark.parametrize(
    ("rows", "right"),
    [(ROWS, True), (ROWS[[1, 0, 2]], True), (ROWS[:1], False), (ROWS[:0], False), (ROWS + 30, False)],
    ids=["same", "reordered", "lost", "empty", "moved"],
)
def test_where_nms_is_in_the_graph_boxes_decide(tmp_path: Path, rows: np.ndarray, right: bool) -> None:
    bundle = opened(tmp_path, {"out": ROWS[None]}, decoder=NMS)
    assert run_golden(bundle, NullSession({"out": rows[None]}, 0, "int8+f32")).passed is right
    ghosts = np.concatenate([ROWS, ROWS + np.eye(6)[5], ROWS[:, [1, 0, 3, 2, 4, 5]]])
    assert not run_golden(bundle, NullSession({"out": ghosts[None]}, 0, "int8+f32")).passed


def test_a_bundle_without_golden_frames_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "b.avq"
    write_bundle(staging_folder(folder), folder, manifest(), {"model.onnx": b"model"})
    with pytest.raises(BundleError, match="no golden outputs"):
        golden_inputs(open_bundle(folder))


def test_the_coarsest_part_sets_the_limit() -> None:
    assert limit_of("onnxruntime", "int8+f32") < limit_of("onnxruntime", "bf16") < limit_of("openvino", "f32")
    assert limit_of("tensorrt", "f32") < limit_of("onnxruntime", "f32")
    assert limit_of("openvino", "unheard of") == limit_of("openvino", "int8")
