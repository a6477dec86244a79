"""What a target's builder is given: nothing that lint refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from avq.build import build
from avq.bundle import MODEL, open_bundle
from avq.engines import engine_by_name
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes.dataset import write_labelled_set
from avq.types import Recipe
from tests.build.lower.lowering_nets import small_net

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


@pytest.mark.parametrize("gate", [True, False])
def test_what_lint_refuses_reaches_no_builder_and_is_refused_by_its_name(tmp_path: Path, gate: bool):
    write_labelled_set(tmp_path / "scenes", seeds=range(8_000_000, 8_000_006))
    (tmp_path / "net.onnx").write_bytes(with_determinants().SerializeToString())
    recipe = Recipe(
        model=tmp_path / "net.onnx",
        output=tmp_path / "net.avq",
        data=tmp_path / "scenes",
        strategy="float",
        target="tensorrt-rtx",
        decoder="none",
        gate=gate,
    )
    outcome = build(recipe, PluginHost(), Silent())
    told = " ".join(outcome.summary()["reasons"])
    assert "error AVQ-L43: volumes_of" in told and "nothing was compiled" in told
    assert outcome.accepted is False and outcome.compiled.rows == ()
    assert outcome.answer_is_yes is not gate
    bundle = open_bundle(outcome.folder, allow_unaccepted=True)
    assert bundle.has(MODEL) and not [name for name in bundle.manifest.parts if name.startswith("engine.sm")]
