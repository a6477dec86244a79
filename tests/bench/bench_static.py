"""What each option of ``static`` changes, on real models and pictures.

    python tests/bench/bench_static.py [--material DIR] [--models NAME ...]

Per model: loss against the float model on the pictures a build judges with, the runtime's optimisations off, and the
processor seconds that planning took (calibration counts come from the cache after the first row). Skips where the
material is absent.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from avq_static import StaticOptions, StaticQuantizer

from avq import Workbench
from avq.cli.terminal import Terminal
from avq.contract.workbench import on_workbench
from avq.types import GraphView

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
MODELS = ("yolox_nano_416", "nanodet_m_320")
_PLAIN: dict[str, Any] = {
    "calibrator": "mse",
    "depthwise": "float",
    "equalize": "off",
    "rounding": "nearest",
    "bias_correction": "off",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "everything auto": {},  # first, so that no answer is known yet
    "plain: mse, depthwise float": _PLAIN,
    "calibrator=minmax": {**_PLAIN, "calibrator": "minmax"},
    "calibrator=percentile (99.99)": {**_PLAIN, "calibrator": "percentile", "percentile": 99.99},
    "calibrator=percentile (searched)": {**_PLAIN, "calibrator": "percentile"},
    "depthwise=int8": {**_PLAIN, "depthwise": "int8"},
    "depthwise=int8 equalize=on": {**_PLAIN, "depthwise": "int8", "equalize": "on"},
    "rounding=gram": {**_PLAIN, "rounding": "gram"},
    "bias_correction=on": {**_PLAIN, "bias_correction": "on"},
    "rounding=gram bias_correction=on": {**_PLAIN, "rounding": "gram", "bias_correction": "on"},
    "bits=4 weights=minmax": {**_PLAIN, "bits": 4, "weights": "minmax"},
    "bits=4 (weights=mse)": {**_PLAIN, "bits": 4},
    "bits=4 rounding=gram": {**_PLAIN, "bits": 4, "rounding": "gram"},
    "bits=4 bias_correction=on": {**_PLAIN, "bits": 4, "bias_correction": "on"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--models", nargs="+", default=MODELS)
    given = parser.parse_args()
    for name in given.models:
        model = given.material / "models" / f"{name}.onnx"
        if not model.is_file():
            print(f"skipped: there is no {model}")
            continue
        data = given.material / "calibration" / "coco100"
        rows = on_workbench(_rows, strategy="static", model=model, data=data)
        Terminal().table(f"{name}: what each option changes", rows)


def _rows(graph: GraphView, bench: Workbench) -> list[dict[str, object]]:
    return [{"options": name, **_row(graph, bench, given)} for name, given in SETTINGS.items()]


def _row(graph: GraphView, bench: Workbench, given: dict[str, Any]) -> dict[str, object]:
    started = time.process_time()
    plan = StaticQuantizer().plan(graph, bench, StaticOptions(**given))
    seconds = time.process_time() - started
    score = bench.error(plan)
    fidelity = score.fidelity
    return {
        "lost boxes %": "-" if fidelity is None else round(100 * fidelity.lost, 2),
        "confidence shift": "-" if fidelity is None else round(fidelity.confidence_shift, 4),
        "worst SQNR dB": round(min(score.sqnr_db.values()), 1),
        "processor s": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
