"""Does the cost model of ``mixed`` predict times? Against random precision maps that it was not fitted to.

    python tests/bench/bench_mixed.py [MODEL ...] [--maps 30] [--sessions 21] [--clock processor] [--quick]

The search runs first as ``avq build --strategy mixed`` would, whole: its seconds and peak memory are told. Then
come maps that it never saw: for half of them every group is in INT8 by itself, with one probability per map
drawn evenly from 0 to 1; the other half are contiguous segments between random cuts, each in INT8 or float
with such a probability. Every map is built ``--sessions`` times, in a new order each time, interleaved with the
fastest float engine; its measured time is the median over its sessions. Building the same map again gives
another time (where its memory happens to lie), and that noise is told beside.

Per model: rank correlation (Spearman) of predicted and measured times, and the median error over that of the
best constant, both with 95 % intervals (bootstrap over maps). Beside them the same two figures of one half of
the sessions as the prediction of the other half: what no model can be expected to beat.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from avq_mixed.maps import Maps
from avq_mixed.strategy import MixedOptions, MixedQuantizer, Timed
from scipy.stats import spearmanr

from avq import Workbench
from avq.builder.context import open_context
from avq.builder.planning import make_plan
from avq.cli.terminal import Terminal
from avq.clock import SystemClock
from avq.measure.latency import ProcessorClock
from avq.plugins import PluginHost
from avq.types import AnyArray, GraphView, QuantizationPlan, Recipe

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
MODELS = ("yolox_nano_416", "nanodet_m_320")
UNSEEN_SEED, SHUFFLE_SEED, BOOTSTRAP_SEED = 2024, 1, 2
RESAMPLES = 2000
CLOCKS = {"wall": SystemClock, "processor": ProcessorClock}


def unseen_maps(groups: int, count: int, seed: int) -> list[AnyArray]:
    """(groups,) bool each: every second one group by group, the others in contiguous segments."""
    rng = np.random.default_rng(seed)
    maps: list[AnyArray] = []
    while len(maps) < count:
        probability = rng.random()
        cuts = np.sort(rng.choice(np.arange(1, groups), size=int(rng.integers(1, 12)), replace=False))
        segment_of = np.searchsorted(cuts, np.arange(groups), side="right")
        drawn = (
            rng.random(groups) < probability
            if len(maps) % 2 == 0
            else (rng.random(cuts.size + 1) < probability)[segment_of]
        )
        if drawn.any():  # all float is no plan
            maps.append(drawn)
    return maps


class Predictions(MixedQuantizer):
    """Searches as ``mixed`` does, then times maps that the search has not seen."""

    def __init__(self, count: int, sessions: int, clock: str) -> None:
        self.count, self.sessions, self.clock = count, sessions, clock
        self.began_s = time.monotonic()
        self.row: dict[str, object] = {}
        self._timed: Timed | None = None

    def timed(self, maps: Maps) -> Timed:
        self._timed = super().timed(maps)
        return self._timed

    def plan(self, graph: GraphView, bench: Workbench, options: MixedOptions) -> QuantizationPlan:
        chosen = super().plan(graph, bench, options)
        searched_s = time.monotonic() - self.began_s
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        timed = self._timed
        if timed is None:
            raise SystemExit("no quantized plan of this model runs here: nothing to predict")
        fitted = {t.int8.tobytes() for t in timed.known}
        drawn = unseen_maps(len(timed.maps.groups), 2 * self.count, UNSEEN_SEED)
        unseen = [m for m in drawn if m.tobytes() not in fitted][: self.count]
        ratios = measured(bench, [timed.maps.plan(m) for m in unseen], self.sessions, self.clock)
        predicted = np.array([timed.cost.predict(m) for m in unseen])
        self.row = {
            "search s": round(searched_s),
            "peak MB": peak_mb,
            "fitted to": len(timed.known),
            **summary(predicted, ratios),
        }
        return chosen


def measured(bench: Any, plans: Sequence[QuantizationPlan], sessions: int, clock: str) -> np.ndarray:
    """(sessions, plans) time over float; every row builds all of them anew, in an order of its own.

    The float session of one row is as lucky or unlucky as any: rows are brought to their common level.
    """
    rng = np.random.default_rng(SHUFFLE_SEED)
    ratios = np.empty((sessions, len(plans)))
    for row in ratios:
        order = rng.permutation(len(plans))
        times = bench._serving.latencies([plans[i] for i in order], CLOCKS[clock]())
        row[order] = [t.ratio for t in times]
    level = np.median(ratios, axis=1, keepdims=True)
    return np.asarray(ratios * (np.exp(np.mean(np.log(level))) / level))


def summary(predicted: np.ndarray, ratios: np.ndarray) -> dict[str, object]:
    """Every figure of the table; ``ratios`` is (sessions, maps)."""
    times = np.median(ratios, axis=0)
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    picks = rng.integers(0, times.size, (RESAMPLES, times.size))
    rank = spearman(predicted, times)
    ranks = [spearman(predicted[p], times[p]) for p in picks]
    errors = [error_ratio(predicted[p], times[p]) for p in picks]
    half = len(ratios) // 2
    halves = [np.median(part, axis=0) for part in (ratios[:half], ratios[half:])] if half else [times, times]
    one_session = np.median(np.abs(ratios - times), axis=None)
    return {
        "maps": times.size,
        "time / float": f"{times.min():.3f} to {times.max():.3f}",
        "Spearman": f"{rank:.3f} {interval(ranks)}",
        "median error": round(float(np.median(np.abs(predicted - times))), 4),
        "over best constant": f"{error_ratio(predicted, times):.2f} {interval(errors)}",
        "half against half": f"{spearman(*halves):.3f}, {error_ratio(*halves):.2f}",
        "noise of one session": round(float(one_session), 4),
        "of the median": round(noise_of_median(ratios), 4),
    }


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def error_ratio(predicted: np.ndarray, times: np.ndarray) -> float:
    """Median error of the prediction over that of the constant that minimises it."""
    constant = float(np.median(np.abs(times - best_constant(times))))
    return float(np.median(np.abs(predicted - times))) / max(constant, 1e-12)


def best_constant(times: np.ndarray) -> float:
    """The middle of the shortest interval that holds half of the times: no constant has a smaller median error."""
    ordered = np.sort(times)
    half = ordered.size // 2 + 1
    widths = ordered[half - 1 :] - ordered[: ordered.size - half + 1]
    first = int(np.argmin(widths))
    return float(ordered[first] + ordered[first + half - 1]) / 2.0


def noise_of_median(ratios: np.ndarray) -> float:
    """Typical standard error of a map's median over its sessions (as of a normal sample)."""
    if len(ratios) < 2:
        return float("nan")
    return float(np.sqrt(np.mean(ratios.var(axis=0, ddof=1)) * np.pi / (2 * len(ratios))))


def interval(values: Sequence[float]) -> str:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"[{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--maps", type=int, default=30)
    parser.add_argument("--sessions", type=int, default=21)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument(
        "--quick", action="store_true", help="hardly judge accuracy: only times are looked at"
    )
    given: Any = parser.parse_args()
    rows = []
    for name in given.models:
        # Its own process each: peak memory is of this search alone.
        with multiprocessing.get_context("spawn").Pool(1) as alone:
            rows.append({"model": name, **alone.apply(predictions, (name, given))})
        Terminal().table(f"predicted against measured time of unseen maps, {given.clock} time", rows[-1:])
    if len(rows) > 1:
        Terminal().table(f"predicted against measured time of unseen maps, {given.clock} time", rows)


def predictions(name: str, given: argparse.Namespace) -> dict[str, object]:
    host, report = PluginHost(), Terminal(quiet=True)
    recipe = Recipe(
        model=given.material / "models" / f"{name}.onnx",
        output=Path("unused"),
        data=given.material / "calibration" / "coco100",
        strategy="mixed",
        options={"calibrator": "mse", "pictures": "1", "probes": "8"} if given.quick else {},
    )
    strategy = Predictions(given.maps, given.sessions, given.clock)
    context = open_context(recipe, host, report)
    make_plan(replace(context, request=replace(context.request, quantizer=strategy)))
    return strategy.row


if __name__ == "__main__":
    main()
