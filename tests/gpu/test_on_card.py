"""What only a card can show; each test skips, saying why, where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avq.engines import engine_by_name
from tests.conftest import ROOT
from tests.gpu import card_table

SCRIPT = ROOT / "tests" / "gpu" / "card_table.py"
STATUS = {name: engine_by_name(name).status() for name in card_table.ENGINES}


@pytest.mark.gpu
@pytest.mark.parametrize("name", card_table.ENGINES)
def test_an_engine_is_built_proven_and_right(name: str, tmp_path: Path) -> None:
    if not STATUS[name].can_run:
        pytest.skip(f"{name}: {STATUS[name].why}")
    rows = card_table.rows_of(name, tmp_path)
    assert {row["what"] for row in rows} >= {"FP32", "FP16", "INT8", "INT8, camera to message"}
    assert all(row.get("lost %", 0) <= 1 for row in rows), rows
    assert all(row.get("graph", "yes") == "yes" for row in rows if "no graph" not in row["what"]), rows


@pytest.mark.gpu
def test_what_the_library_says_on_this_card() -> None:
    said = card_table.validity_on_this_card()
    if not said:
        pytest.skip("no card, or no TensorRT for RTX")
    print(said)


@pytest.mark.skipif(any(status.can_run for status in STATUS.values()), reason="there is a card")
def test_the_script_says_what_is_missing_where_there_is_no_card() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert all(f"{name}: " in done.stdout for name in card_table.ENGINES)
