"""Every strategy's file for heads with anchors and queries, really parsed and built for an RTX card, without one."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from avq.engines import engine_by_name
from tests.replicas.rtx import OTHERS, STRATEGIES, require_engine

STATUS = engine_by_name("tensorrt-rtx").status()
pytestmark = pytest.mark.skipif(not STATUS.available, reason=f"tensorrt-rtx: {STATUS.why}")
INT4 = ("rtdetr", "lowbit")
PAIRS = [(model, strategy) for model in OTHERS for strategy in STRATEGIES if (model, strategy) != INT4]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "strategy"), PAIRS)
def test_the_real_parser_and_builder_take_it(model: str, strategy: str, pictures: Path, folder: Path) -> None:
    require_engine(model, strategy, pictures, folder / model)


@pytest.mark.slow
def test_int4_weights_are_taken_and_keep_the_boxes_of_a_transformer(pictures: Path, folder: Path) -> None:
    """As many weights in 4 bits as the target takes, judged on the bytes that its parser is given."""
    outcome, lowered = require_engine(*INT4, pictures, folder / "rtdetr")
    assert [t.data_type for t in lowered.graph.initializer].count(onnx.TensorProto.INT4) >= 20
    fidelity = outcome.verified.measured.fidelity
    assert fidelity is not None and fidelity.lost <= 0.01
