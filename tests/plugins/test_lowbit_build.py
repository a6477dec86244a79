"""``avq build --strategy lowbit`` on the built-in detector, with real engines: really smaller, hardly worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from avq.builder.pictures.dataset import open_set
from avq.bundle import GOLDEN, MODEL, PLAN_ARRAYS, PLAN_JSON, PROBE, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.engines import builtin_engines
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import CLASS_NAMES, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.types import SessionOptions
from tests.conftest import ROOT
from tests.e2e.conftest import run_avq

CALIBRATION = ROOT / "calibration_data" / "road_scenes"
QUICK = ("activations=float", "correction=false", "pictures=2", "points=4", "rounds=3")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    bundle = tmp_path_factory.mktemp("lowbit") / "lowbit.avq"
    options = [word for option in QUICK for word in ("--option", option)]
    result = run_avq(
        "build", builtin_detector_path(), "--data", CALIBRATION, "--strategy", "lowbit", *options,
        "-o", bundle, "--json", timeout_s=1800,
    )  # fmt: skip
    assert result.stdout, result.stderr
    answer = json.loads(result.stdout)
    return Path(answer["bundle"]), answer


def test_the_bundle_is_really_smaller(built: tuple[Path, dict[str, Any]]) -> None:
    """Every file that holds weights, against one byte per weight."""
    folder, answer = built
    weights = sum(np.prod(t.dims) for t in onnx.load(builtin_detector_path()).graph.initializer)
    for part in (MODEL, PLAN_ARRAYS):
        assert (folder / part).stat().st_size < 0.7 * weights, part
    assert not (folder / PROBE).exists()  # with float data there is no range to leave
    assert answer["chosen"]["lost"] <= 0.01 and "of their INT8 size" in " ".join(answer["reasons"])


def test_every_group_tells_its_bits_and_how_they_are_stored(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    bundle = open_bundle(folder, allow_unaccepted=True)
    bundle.verify()
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    bits = {point.edge.node: point.bits for point in plan.points}
    assert min(bits.values()) < 8 and all(point.packed for point in plan.points)
    for node, width in bits.items():
        assert f"weights in {width} bits" in plan.precisions[node].reason
    page = (folder / "report.html").read_text()
    assert "Accuracy against bits" in page and "unpacked at load" in page


def test_every_runtime_opens_the_packed_file(built: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = built
    golden = open_bundle(folder, allow_unaccepted=True).arrays(GOLDEN)
    wanted = {name.partition(":")[2]: v for name, v in golden.items() if name.startswith("output_0:")}
    for engine in builtin_engines():
        if engine.status().can_run:
            got = engine.open(folder / MODEL, SessionOptions()).infer(golden["input_0"])
            for name, value in wanted.items():
                noise = float(((got[name] - value) ** 2).mean() / (value**2).mean())
                assert noise < 1e-3, (engine.name, name)


def test_accuracy_holds_on_scenes_it_never_saw(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = built
    write_labelled_set(tmp_path / "scenes", seeds=range(6_000_000, 6_000_040), ignore_below_px=32)
    pictures, host, report = open_set(tmp_path / "scenes"), PluginHost(), Silent()
    truth = load_labels(tmp_path / "scenes" / "labels.json", class_map={}, class_names=CLASS_NAMES)
    found = {}
    for name, path in (("float", builtin_detector_path()), ("lowbit", folder)):
        detector = open_subject(path, pictures, ModelFlags(), host, report)
        found[name] = accuracy_on(truth, pictures, detections_of(detector, pictures, report, name)).map
    assert found["float"] > 0.6 and found["lowbit"] >= 0.97 * found["float"]
