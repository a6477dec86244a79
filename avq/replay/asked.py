"""``avq replay``: one log with one bundle, or every log with every bundle over a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avq.errors import RequestError
from avq.fanout import fleet_of
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.command import replay_log
from avq.replay.fleet import replay_many
from avq.replay.merged import Merged
from avq.replay.outcome import Outcome


def replay_asked(
    *,
    logs: Sequence[str],
    bundles: Sequence[Path],
    ray: str | None,
    host: PluginHost,
    report: Reporter,
    **options: Any,
) -> Outcome | Merged:
    """``options`` are the other arguments of ``replay_log``. Raises what it raises."""
    if len(logs) == len(bundles) == 1 and ray is None:
        return replay_log(log=logs[0], bundle=bundles[0], host=host, report=report, **options)
    _check(logs, bundles, options)
    with fleet_of(ray) as fleet:
        return replay_many(logs=logs, bundles=bundles, fleet=fleet, report=report, **options)


def _check(logs: Sequence[str], bundles: Sequence[Path], options: dict[str, Any]) -> None:
    baseline = options["baseline"]
    if baseline is not None and baseline.suffix.lower() == ".mcap" and len(logs) > 1:
        raise RequestError(
            "one reference cannot be that of several logs",
            seen=f"--baseline {baseline}, {len(logs)} logs",
            fix="name a folder: it keeps one reference per log",
        )
    if options["accept"] and len(bundles) > 1:
        raise RequestError(
            "one bundle's replay can be the reference",
            seen=f"--accept with {len(bundles)} bundles",
            fix="accept with the bundle that is known to be right",
        )
