"""``avq bench``: bundles timed interleaved, with paired ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avq.bundle import GOLDEN, OpenBundle, open_bundle
from avq.engines.cpu import instruction_set
from avq.hookspecs import Session
from avq.measure.detector import open_session
from avq.measure.latency import paired_latency, ratio_interval
from avq.plugins import PluginHost
from avq.types import AnyArray


def bench(bundles: Sequence[Path], *, rounds: int, host: PluginHost) -> dict[str, Any]:
    """The keys of ``avq bench --json``: one entry per bundle, one ratio per pair, time(a) / time(b)."""
    engines = host.running_engines()
    opened = [open_bundle(path, allow_unaccepted=True, isa=instruction_set()) for path in bundles]
    sessions = [open_session(bundle, engines) for bundle in opened]
    labels = _labels(bundles)
    try:
        runs = {
            label: _runner(session, bundle.arrays(GOLDEN)["input_0"])
            for label, session, bundle in zip(labels, sessions, opened, strict=True)
        }
        samples = paired_latency(runs, rounds=rounds)
    finally:
        for session in sessions:
            session.close()
    ratios = []
    for index, a in enumerate(labels):
        for b in labels[index + 1 :]:
            median, low, high = ratio_interval(samples[a], samples[b])
            ratios.append({"a": a, "b": b, "median": median, "low": low, "high": high})
    entries = [
        _entry(label, bundle, session.precision, samples[label].p50_ms, samples[label].p99_ms)
        for label, bundle, session in zip(labels, opened, sessions, strict=True)
    ]
    return {"entries": entries, "ratios": ratios}


def _entry(label: str, bundle: OpenBundle, precision: str, p50_ms: float, p99_ms: float) -> dict[str, object]:
    use = bundle.manifest.engine
    return {
        "bundle": label,
        "engine": use.name,
        "precision": precision,
        "threads": use.threads,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
    }


def _labels(bundles: Sequence[Path]) -> list[str]:
    """Their paths; one named twice is numbered, which times it against itself."""
    labels: list[str] = []
    for path in bundles:
        label = str(path)
        while label in labels:
            label += " (again)"
        labels.append(label)
    return labels


def _runner(session: Session, tensor: AnyArray) -> Callable[[], object]:
    return lambda: session.infer(tensor)
