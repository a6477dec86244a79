"""Does the cost model of ``mixed`` predict times? Against random precision maps that it was not fitted to.

    python tests/bench/bench_mixed.py [--material DIR] [--maps 30]

Per model: rank correlation (Spearman) of predicted and measured times, and the median error against that of the
best constant. Times are of one thread, interleaved with the fastest float engine.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from avq_mixed.costs import random_maps
from avq_mixed.sensitivity import damages, measure
from avq_mixed.solve import Problem, candidates
from avq_mixed.strategy import MixedOptions, MixedQuantizer, Timed, anchors, mac_shares
from scipy.stats import spearmanr

from avq import Workbench
from avq.build.calibrate.commands import Calibration
from avq.build.pictures import open_pictures
from avq.build.planning import make_plan
from avq.build.probe_set import prepare_probe_set
from avq.build.request import check
from avq.build.understand.host import understand_model
from avq.plugins import PluginHost
from avq.terminal import Terminal
from avq.toolbox import place
from avq.types import GraphView, QuantizationPlan, Recipe

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
MODELS = ("yolox_nano_416", "nanodet_m_320")
UNSEEN_SEED = 2024


class Predictions(MixedQuantizer):
    """Fits the cost model as ``mixed`` does, then times maps it has not seen."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.row: dict[str, object] = {}

    def plan(self, graph: GraphView, bench: Workbench, options: MixedOptions) -> QuantizationPlan:
        maps = self.maps(graph, bench, place(graph, bench.keep_float), options)
        always = anchors(maps)
        bench.serve([maps.plan(m) for m in always.values()])
        timed = Timed(maps)
        cost = timed.learn([*always.values(), *random_maps(maps.groups, options.maps, options.seed)])
        damage = damages(measure(maps, 4, 30))
        cost = timed.learn(candidates(Problem(cost, damage, mac_shares(maps.groups)), options.steps, (0.9,)))

        unseen = random_maps(maps.groups, self.count, UNSEEN_SEED)
        times = bench.latencies([maps.plan(m) for m in unseen])
        measured = np.array([t.ratio for t in times if t is not None])
        predicted = np.array([cost.predict(m) for m, t in zip(unseen, times, strict=True) if t is not None])
        self.row = _summary(predicted, measured)
        return maps.plan(maps.all_float())


def _summary(predicted: np.ndarray, measured: np.ndarray) -> dict[str, object]:
    error = float(np.median(np.abs(predicted - measured)))
    constant = float(np.median(np.abs(measured - np.median(measured))))
    return {
        "maps": measured.size,
        "time / float": f"{measured.min():.3f} to {measured.max():.3f}",
        "Spearman": round(float(spearmanr(predicted, measured).statistic), 3),
        "median error": round(error, 4),
        "of the best constant": round(constant, 4),
        "ratio": round(error / max(constant, 1e-12), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--maps", type=int, default=30)
    given: Any = parser.parse_args()
    rows = [{"model": name, **predictions(name, given.material, given.maps)} for name in MODELS]
    Terminal().table("predicted against measured time of unseen precision maps", rows)


def predictions(name: str, material: Path, count: int) -> dict[str, object]:
    host, report = PluginHost(), Terminal(quiet=True)
    recipe = Recipe(
        model=material / "models" / f"{name}.onnx",
        output=Path("unused"),
        data=material / "calibration" / "coco100",
        strategy="mixed",
        options={"calibrator": "mse"},
    )
    strategy = Predictions(count)
    request = replace(check(recipe, host), quantizer=strategy)
    pictures = open_pictures(recipe, report)
    understood = understand_model(request, pictures.samples, report)
    probe_set = prepare_probe_set(request, understood, pictures, report)
    calibration = Calibration(request, understood, pictures.calibration, report)
    make_plan(request, understood, calibration, probe_set, host, report)
    return strategy.row


if __name__ == "__main__":
    main()
