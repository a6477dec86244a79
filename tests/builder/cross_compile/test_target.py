"""What a target's builder is given: nothing that lint refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from avq.builder import build
from avq.builder.outcome import Outcome
from avq.bundle import MODEL, open_bundle
from avq.engines import engine_by_name
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes.dataset import write_labelled_set
from avq.types import Recipe
from tests.builder.lower.lowering_nets import small_net

RTX = engine_by_name("tensorrt-rtx")
pytestmark = pytest.mark.skipif(not RTX.status().can_build, reason=f"tensorrt-rtx: {RTX.status().why}")


def with_determinants() -> onnx.ModelProto:
    """The net with an operator that TensorRT's parser has no importer for."""
    net = small_net()
    net.graph.node.append(helper.make_node("Det", ["x2"], ["volumes"], name="volumes_of"))
    net.graph.node.append(helper.make_node("Mul", ["volumes", "nothing"], ["still"], name="stilled"))
    net.graph.initializer.append(numpy_helper.from_array(np.float32(0.0), "nothing"))
    net.graph.output.append(helper.make_tensor_value_info("still", onnx.TensorProto.FLOAT, [1, 8]))
    return net


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, which every build reads and none changes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_labelled_set(folder, seeds=range(8_000_000, 8_000_008))
    return folder


def built(scenes: Path, folder: Path, net: onnx.ModelProto, **fields: Any) -> Outcome:
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(net.SerializeToString())
    recipe = Recipe(
        model=folder / "net.onnx",
        output=folder / "net.avq",
        data=scenes,
        target="tensorrt-rtx",
        decoder="none",
        **fields,
    )
    return build(recipe, PluginHost(), Silent())


@pytest.mark.parametrize("gate", [True, False])
def test_what_lint_refuses_reaches_no_builder_and_is_refused_by_its_name(
    scenes: Path, tmp_path: Path, gate: bool
) -> None:
    outcome = built(scenes, tmp_path, with_determinants(), strategy="float", gate=gate)
    reasons = " ".join(outcome.summary()["reasons"])
    assert "error AVQ-L43: volumes_of" in reasons and "nothing was compiled" in reasons
    assert outcome.accepted is False and outcome.compiled.rows == ()
    assert outcome.passed is not gate
    bundle = open_bundle(outcome.folder, allow_unaccepted=True)
    assert bundle.has(MODEL) and not [name for name in bundle.manifest.parts if name.startswith("engine.sm")]


def with_a_product() -> onnx.ModelProto:
    """The net and a product with a value that FP16 does not hold."""
    net = small_net()
    weight = np.full((8, 4), 1e6, np.float32)
    net.graph.initializer.append(numpy_helper.from_array(weight, "large"))
    net.graph.node.append(
        helper.make_node("ReduceMean", ["x2"], ["means"], name="mean", axes=[2, 3], keepdims=0)
    )
    net.graph.node.append(helper.make_node("MatMul", ["means", "large"], ["answer"], name="product"))
    net.graph.output.append(helper.make_tensor_value_info("answer", onnx.TensorProto.FLOAT, [1, 4]))
    return net


def test_an_architecture_that_lint_refuses_is_not_compiled_and_another_one_is(
    scenes: Path, tmp_path: Path
) -> None:
    old = built(scenes, tmp_path / "old", with_a_product(), strategy="float", gpu_arch=("7.5", "sm86"))
    reasons = " ".join(old.summary()["reasons"])
    assert old.accepted is False and old.compiled.rows == ()
    assert "AVQ-L54: product" in reasons and "sm75" in reasons
    assert any("--gpu-arch" in fix for fix in old.verdict.fixes)
    new = built(scenes, tmp_path / "new", with_a_product(), strategy="float", gpu_arch=("sm86",), gate=False)
    assert [row["architecture"] for row in new.compiled.rows] == ["sm86"]


@pytest.mark.slow
def test_each_model_is_linted_once(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import avq.builder.lint

    compiled: list[bytes] = []
    real = avq.builder.lint.lint

    def noted(proto: onnx.ModelProto, *rest: Any) -> Any:
        compiled.append(proto.SerializeToString(deterministic=True))
        return real(proto, *rest)

    monkeypatch.setattr(avq.builder.lint, "lint", noted)
    outcome = built(
        scenes, tmp_path, small_net(), strategy="static", options={"calibrator": "minmax"}, gate=False
    )
    assert outcome.compiled.rows and len(compiled) == len(set(compiled)) == 2, (
        "the model and its FP16 baseline"
    )
