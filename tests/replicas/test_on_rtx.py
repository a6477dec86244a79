"""Every strategy's file, and those of unlike heads, really parsed and built for RTX cards, without a card."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from avq.build.lint import lint
from avq.bundle import MODEL, open_bundle
from avq.engines import engine_by_name
from avq.scenes.dataset import write_labelled_set
from tests.replicas.rtx import STRATEGIES, build_for_rtx

STATUS = engine_by_name("tensorrt-rtx").status()
pytestmark = pytest.mark.skipif(not STATUS.available, reason=f"tensorrt-rtx: {STATUS.why}")
#: The whole cross product takes minutes: tests/soak/strategies_on_rtx.py.
PAIRS = [("yolox", strategy) for strategy in STRATEGIES] + [("ssd", "static"), ("rtdetr", "static")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_labelled_set(folder, seeds=range(8_000_000, 8_000_006))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rtx")


@pytest.mark.parametrize(("model", "strategy"), PAIRS)
def test_the_real_parser_and_builder_take_it(model: str, strategy: str, pictures: Path, folder: Path):
    (folder / model).mkdir(exist_ok=True)
    outcome = build_for_rtx(model, strategy, pictures, folder / model)
    assert [row["engine kB"] for row in outcome.compiled.rows if row["engine kB"]]
    bundle = open_bundle(folder / model / f"{strategy}.avq", allow_unaccepted=True)
    assert bundle.has("engine.sm89")
    proto = onnx.load_model_from_string(bundle.read(MODEL))
    assert not [f for f in lint(proto, "tensorrt-rtx") if f.severity == "error"]
    assert (outcome.int8_mac_share > 0.5) == (strategy != "float")
