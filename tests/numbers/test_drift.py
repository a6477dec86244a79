"""Drift shares of ``avq eval --drift`` and of the daemon equal an own run of the probe, in every weather."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from avq.bundle import PROBE, open_bundle
from avq.commands.evaluate import drift
from avq.daemon.drift import Drift
from avq.plugins import PluginHost
from avq.preprocess import Preprocessor
from avq.progress import Silent
from avq.scenes.dataset import write_labelled_set
from avq.types import U8, Detections, Frame
from tests.replay.bundle_kit import int8_plan, write_real_bundle

#: Set name -> pictures: weather and size in pixels.
SETS = {
    "day": ("day", 640, 360),
    "night": ("night", 640, 360),
    "rain": ("rain", 640, 360),
    "other_camera": ("day", 360, 640),
}
COUNT = 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose percentile ranges clip, so that shares are not zero."""
    plan = int8_plan(calibrator="percentile")
    return write_real_bundle(tmp_path_factory.mktemp("drift") / "b.avq", plan, probe=True)


def pixels_of(path: Path) -> U8:
    pixels = cv2.imread(str(path))
    assert pixels is not None
    return np.asarray(pixels, np.uint8)


def own_shares(bundle: Path, pictures: list[Path]) -> tuple[float, float]:
    """Mean saturation and occupancy: the run and the means in plain calls."""
    opened = open_bundle(bundle)
    spec = opened.manifest.preprocess
    assert spec is not None
    session = onnxruntime.InferenceSession(opened.read(PROBE), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = []
    for path in pictures:
        tensor = Preprocessor(spec).prepare(Frame("front", 0, 0, pixels_of(path))).tensor
        rows.append(session.run(names, {session.get_inputs()[0].name: tensor}))
    values = np.array(rows, np.float64)
    saturated = [i for i, name in enumerate(names) if name.startswith("saturation/")]
    occupied = [i for i, name in enumerate(names) if name.startswith("occupancy/")]
    return float(values[:, saturated].mean()), float(values[:, occupied].mean())


@pytest.mark.slow
def test_shares_equal_an_own_run_of_the_probe(bundle: Path, tmp_path: Path) -> None:
    host, truth, shown = PluginHost(), [], []
    for name, (weather, width, height) in SETS.items():
        folder = tmp_path / name
        write_labelled_set(
            folder, seeds=range(7000, 7000 + COUNT), weather=weather, width_px=width, height_px=height
        )
        pictures = sorted(folder.glob("*.jpg"))
        share, occupancy = own_shares(bundle, pictures)
        answer = drift(subject=bundle, data=folder, host=host, report=Silent())
        watch = Drift(host.running_engines(), open_bundle(bundle))
        for seq, path in enumerate(pictures):
            watch.examine(Frame("front", seq, 0, pixels_of(path)), Detections.none("front", seq), "b")
        state = watch.state()
        row = state["cameras"]["front"]
        watch.close()
        for seen in (answer, state, row):
            assert seen["share"] == pytest.approx(share, abs=1e-6), name
            assert seen["occupancy"] == pytest.approx(occupancy, abs=1e-5), name
        assert row["unusual_pictures"] == answer["beyond"] and row["pictures"] == answer["images"] == COUNT
        truth.append(share)
        shown.append(answer["share"])
    assert np.argsort(truth).tolist() == np.argsort(shown).tolist() and max(truth) > 0
