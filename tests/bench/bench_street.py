"""Real models on real street pictures: float and static bundles, in accuracy and in time.

    python tests/bench/bench_street.py [--material DIR]

Builds on coco100 without labels, as a user would, and evaluates on pictures the builds never saw: mAP50-95 of
person and vehicle (car, bus, truck), and fidelity to the FP32 model. Times are of one thread, interleaved.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from avq.builder import build
from avq.cli.terminal import Terminal
from avq.commands.bench import bench
from avq.commands.evaluate import EvalJson, evaluate
from avq.plugins import PluginHost
from avq.types import Recipe

ROOT = Path(__file__).resolve().parents[2]
MATERIAL = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
MODELS = ("yolox_nano_416", "nanodet_m_320")
FLAGS: dict[str, Any] = {"decoder": None, "preprocess": None, "classes": None, "threads": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--material", type=Path, default=MATERIAL)
    material = parser.parse_args().material
    host, report = PluginHost(), Terminal(quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name in MODELS for row in measure(name, material, Path(folder), host, report)]
    Terminal().table("street, 230 pictures, one thread", rows)


def measure(
    name: str, material: Path, folder: Path, host: PluginHost, report: Terminal
) -> list[dict[str, object]]:
    model = material / "models" / f"{name}.onnx"
    made = {}
    for strategy in ("float", "static"):
        recipe = Recipe(
            model=model,
            output=folder / f"{name}.{strategy}",
            data=material / "calibration" / "coco100",
            strategy=strategy,
            gate=False,
        )
        made[strategy] = build(recipe, host, report)
    times = bench([made["float"].folder, made["static"].folder], rounds=200, host=host)
    ratio = times["ratios"][0]
    rows = [_row(name, "FP32 model", _eval(model, model, material, host, report), "", "", "")]
    for entry, (strategy, outcome) in zip(times["entries"], made.items(), strict=True):
        answer = _eval(outcome.folder, model, material, host, report)
        gate = "accepted" if outcome.verdict.accepted else "refused"
        against = f"{1 / ratio['median']:.2f} [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}]"
        timed = f"{entry['p50_ms']:.2f}"
        rows.append(
            _row(name, f"{strategy}: {outcome.chosen.candidate.label}", answer, timed,
                 against if strategy == "static" else "1", gate)
        )  # fmt: skip
    return rows


def _eval(subject: Path, model: Path, material: Path, host: PluginHost, report: Terminal) -> EvalJson:
    street = material / "street"
    return evaluate(
        subject=subject,
        data=street / "images",
        labels=street / "labels.json",
        maps=("vehicle=car,bus,truck",),
        reference=model,
        host=host,
        report=report,
        **FLAGS,
    )


def _row(name: str, what: str, answer: EvalJson, p50_ms: str, ratio: str, gate: str) -> dict[str, object]:
    reference = answer["reference"]
    return {
        "model": name,
        "served as": what,
        "mAP": f"{answer['map']:.4f}",
        "AP50": f"{answer['ap50']:.4f}",
        "lost boxes %": f"{100 * reference['lost']:.2f}",
        "fidelity mAP": f"{reference['fidelity_map']:.3f}",
        "p50 ms": p50_ms,
        "time / float": ratio,
        "gate": gate,
    }


if __name__ == "__main__":
    main()
