"""``avq replay``: one log with one bundle, or every log with every bundle over a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avq.bundle import is_bundle
from avq.errors import RequestError
from avq.parallel import fleet_of
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.command import replay_log
from avq.replay.fleet import absolute, replay_many
from avq.replay.merged import Merged
from avq.replay.mine import mine
from avq.replay.mine.command import Mined
from avq.replay.outcome import Outcome


def replay_asked(
    *,
    logs: Sequence[str],
    bundles: Sequence[Path],
    ray: str | None,
    mine_folder: Path | None,
    mine_count: int,
    licence: str,
    host: PluginHost,
    report: Reporter,
    **options: Any,
) -> Outcome | Merged | Mined:
    """``options`` are the other arguments of ``replay_log``. Raises what it raises."""
    if mine_folder is not None:
        _check_mining(bundles, options)
        with fleet_of(ray) as fleet:
            return mine(
                logs=[absolute(log) for log in logs],
                bundle=bundles[0],
                other=options["baseline"],
                folder=mine_folder,
                count=mine_count,
                licence=licence,
                frames=options["frames"],
                fleet=fleet,
                host=host,
                report=report,
            )
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


def _check_mining(bundles: Sequence[Path], options: dict[str, Any]) -> None:
    if len(bundles) > 1:
        raise RequestError(
            "frames are mined for one bundle",
            seen=f"{len(bundles)} bundles",
            fix="name the other one with --baseline: frames they disagree about are mined",
        )
    baseline = options["baseline"]
    if baseline is not None and not is_bundle(baseline):
        raise RequestError(
            "mining compares with a bundle",
            seen=f"--baseline {baseline}",
            fix="name a bundle, or leave it out: then the bundle is compared with its own float network",
        )
    for flag in ("accept", "report_folder"):
        if options[flag]:
            raise RequestError(
                "mining writes a set and nothing else",
                seen=f"--mine and --{flag.partition('_')[0]}",
                fix="ask for the report or the reference in a second call",
            )
