"""docs/qat.md from end to end: its example fine-tunes the built-in detector in torch, and avq serves the result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from avq.scenes import builtin_detector_path
from tests.conftest import ROOT
from tests.e2e.conftest import CALIBRATION, run_avq

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Q/DQ model that the page's example writes."""
    pytest.importorskip(
        "torch", reason='torch is not installed: pip install "avq[train]" runs the fine-tuning'
    )
    page = (ROOT / "docs" / "qat.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path_factory.mktemp("qat")
    (folder / "example.py").write_text(example)
    command = [sys.executable, "-W", "ignore", "example.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"step \d+: loss \d", done.stdout)) == 6
    return folder / "qat.onnx"


def test_the_example_trains_every_quantized_weight(trained: Path) -> None:
    """Every kernel is one of the packaged detector, moved a little."""
    before, after = _kernels(builtin_detector_path()), _kernels(trained)
    assert sorted(w.shape for w in before) == sorted(w.shape for w in after)
    for weight in after:
        moved = min(float(np.abs(weight - w).max()) for w in before if w.shape == weight.shape)
        assert 0 < moved < 0.05


def test_what_was_trained_is_imported_to_the_bit_and_passes_the_gate(trained: Path, tmp_path: Path) -> None:
    result = run_avq(
        "build", trained, "--strategy", "qat", "--data", CALIBRATION, "--gate", "accuracy",
        "-o", tmp_path / "qat.avq", "--json",
    )  # fmt: skip
    answer = json.loads(result.stdout)
    reasons = " ".join(answer["reasons"])
    assert "bit-equal to the source file" in reasons, reasons
    lost = re.search(r"lost boxes ([\d.]+) %", reasons)
    assert lost is not None and float(lost.group(1)) <= 1.0
    assert answer["accuracy_verdict"] != "no", reasons


def _kernels(path: Path) -> list[np.ndarray]:
    """Weights of all convolutions."""
    arrays = [numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    return [array for array in arrays if array.ndim == 4 and array.dtype == np.float32]
