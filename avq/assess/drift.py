"""``avq eval --drift``: do these pictures look like those a bundle was calibrated on?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avq.builder.drift_parts import probe_ratios
from avq.builder.pictures.dataset import open_set
from avq.builder.request import reference_engine
from avq.bundle import DRIFT, PROBE, OpenBundle, open_bundle
from avq.errors import RequestError
from avq.measure.drift import FALSE_ALARM_RATE, DriftReference, DriftVerdict, judge_set
from avq.plugins import PluginHost
from avq.progress import Reporter


def drift(
    *,
    subject: Path,
    data: Path,
    host: PluginHost,
    report: Reporter,
    threads: int = 1,
    labels: Path | None = None,
    reference: Path | None = None,
    **_: Any,
) -> dict[str, Any]:
    """The keys of ``avq eval --drift --json``; ``drift`` is the answer, ``limit`` null for too few pictures.

    Raises RequestError for anything but a bundle with probe.onnx and drift.json, and with labels or a reference:
    drift needs neither, and is another question.
    """
    if labels is not None or reference is not None:
        raise RequestError(
            "--drift compares with the calibration pictures only",
            seen="--labels" if labels is not None else "--reference",
            fix="ask for accuracy in a second call, without --drift",
        )
    bundle = open_bundle(subject, allow_unaccepted=True) if subject.is_dir() else None
    if bundle is None or not bundle.has(DRIFT) or bundle.manifest.preprocess is None:
        raise _no_reference(subject, bundle)
    usual = DriftReference.from_json(bundle.read(DRIFT))
    pictures = open_set(data, report, copies=True)
    rows = probe_ratios(
        bundle.read(PROBE),
        reference_engine(host),
        bundle.manifest.preprocess,
        pictures.items,
        report,
        threads=threads,
    )
    verdict = judge_set(usual, rows)
    if verdict.limit is None:
        report.warning(f"{len(rows)} pictures are too few to tell drift from chance, whatever they show")
    names = [item.path.name for item in pictures.items]
    return _answer(verdict, names)


def closing(answer: dict[str, Any]) -> list[str]:
    """What a person reads last."""
    count = f"{answer['beyond']} of {answer['images']} pictures are unusual"
    if answer["limit"] is None:
        return [f"no answer: {count}, and more pictures are needed to tell drift from chance"]
    limit = f"limit {answer['limit']}, at most {FALSE_ALARM_RATE:g} false alarms per set"
    if not answer["drift"]:
        return [f"no drift: {count} ({limit})"]
    return [
        f"DRIFT: {count} ({limit})",
        "  next: look at the pictures, add such ones to the calibration set, and avq build again",
    ]


def tables(answer: dict[str, Any]) -> list[tuple[str, list[dict[str, object]]]]:
    """The ratios that moved most, and the most unusual pictures."""
    moved = [
        {
            "ratio": row["ratio"],
            "usual": f"{row['usual']:.4f} [{row['usual_low']:.4f}, {row['usual_high']:.4f}]",
            "here": f"{row['here']:.4f}",
            "deviation": f"{row['deviation']:+.1f}",
        }
        for row in answer["moved"]
    ]
    return [("What moved most, in spreads of the calibration pictures", moved)]


def _answer(verdict: DriftVerdict, names: list[str]) -> dict[str, Any]:
    order = np.argsort(-verdict.scores, kind="stable")[:5]
    return {
        "drift": verdict.drifting,
        "images": len(verdict.scores),
        "beyond": verdict.beyond,
        "limit": verdict.limit,
        "chance": verdict.chance,
        "score": float(np.median(verdict.scores)),
        "threshold": verdict.reference.threshold,
        "false_alarm_rate": FALSE_ALARM_RATE,
        "reference_images": verdict.reference.pictures,
        "moved": verdict.unusual(),
        "most_unusual": [{"picture": names[i], "score": float(verdict.scores[i])} for i in order],
    }


def _no_reference(subject: Path, bundle: OpenBundle | None) -> RequestError:
    if bundle is None:
        return RequestError(
            f"--drift asks a bundle, and {subject} is none",
            seen="not a folder",
            fix="avq build MODEL.onnx --data DIR -o BUNDLE, then name the bundle",
        )
    strategy = bundle.manifest.strategy.name
    return RequestError(
        f"the bundle {subject} has no drift reference",
        seen=f"strategy {strategy}, {'' if bundle.has(PROBE) else 'no '}probe.onnx, no drift.json",
        fix="a float bundle has no ranges to leave; build one with --strategy static on at least 10 pictures",
    )
