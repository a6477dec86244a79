"""Every strategy's file for heads that answer on every cell, really parsed and built for an RTX card, without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from avq.engines import engine_by_name
from tests.replicas.rtx import DENSE, STRATEGIES, require_engine

STATUS = engine_by_name("tensorrt-rtx").status()
pytestmark = pytest.mark.skipif(not STATUS.available, reason=f"tensorrt-rtx: {STATUS.why}")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("model", DENSE)
def test_the_real_parser_and_builder_take_it(model: str, strategy: str, pictures: Path, folder: Path) -> None:
    require_engine(model, strategy, pictures, folder / model)
