"""``avq bench``: latency of bundles in interleaved rounds, with paired ratios."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from avq.bundle import GOLDEN, OpenBundle, open_bundle
from avq.engines.cpu import instruction_set
from avq.hookspecs import Session
from avq.measure.detector import open_session
from avq.measure.latency import paired_latency, ratio_interval
from avq.plugins import PluginHost
from avq.types import AnyArray


class BenchEntry(TypedDict):
    """Latency of one bundle in milliseconds."""

    bundle: str
    engine: str
    precision: str
    threads: int
    p50_ms: float
    p99_ms: float


class BenchRatio(TypedDict):
    """Paired ratio time(a) / time(b), with its 95 % interval."""

    a: str
    b: str
    median: float
    low: float
    high: float


class BenchJson(TypedDict):
    """Object of ``avq bench --json``: one entry per bundle, one ratio per pair."""

    entries: list[BenchEntry]
    ratios: list[BenchRatio]


def bench(bundles: Sequence[Path], *, rounds: int, host: PluginHost) -> BenchJson:
    """Time bundles on their golden input, round by round in turn.

    Args:
        bundles: bundle folders, accepted or not; a bundle may be given twice.
        rounds: inferences per bundle.
        host: loaded plugins.

    Raises:
        BundleError: a bundle is damaged. MachineError: its engine does not run on this machine.
    """
    engines = host.running_engines()
    loaded = [open_bundle(path, allow_unaccepted=True, isa=instruction_set()) for path in bundles]
    sessions = [open_session(bundle, engines) for bundle in loaded]
    labels = _labels(bundles)
    try:
        runs = {
            label: _runner(session, bundle.arrays(GOLDEN)["input_0"])
            for label, session, bundle in zip(labels, sessions, loaded, strict=True)
        }
        samples = paired_latency(runs, rounds=rounds)
    finally:
        for session in sessions:
            session.close()
    ratios: list[BenchRatio] = []
    for index, a in enumerate(labels):
        for b in labels[index + 1 :]:
            median, low, high = ratio_interval(samples[a], samples[b])
            ratios.append({"a": a, "b": b, "median": median, "low": low, "high": high})
    entries = [
        _entry(label, bundle, session.precision, samples[label].p50_ms, samples[label].p99_ms)
        for label, bundle, session in zip(labels, loaded, sessions, strict=True)
    ]
    return {"entries": entries, "ratios": ratios}


def _entry(label: str, bundle: OpenBundle, precision: str, p50_ms: float, p99_ms: float) -> BenchEntry:
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
    """Return the paths as labels; a path given twice gets a suffix."""
    labels: list[str] = []
    for path in bundles:
        label = str(path)
        while label in labels:
            label += " (again)"
        labels.append(label)
    return labels


def _runner(session: Session, tensor: AnyArray) -> Callable[[], object]:
    return lambda: session.infer(tensor)
