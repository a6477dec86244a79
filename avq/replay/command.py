"""``avq replay``: from flags to one outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.result import ReplayResult
from avq.replay.run import Policy, ReplayRequest, replay
from avq.replay.timing import Timing


@dataclass(frozen=True)
class Outcome:
    """What ``avq replay`` answers."""

    result: ReplayResult

    @property
    def answer_is_yes(self) -> bool:
        return True

    def summary(self) -> dict[str, Any]:
        """The keys of ``avq replay --json``."""
        result = self.result
        return {
            "frames": result.frames,
            "identical": None,
            "differences": [],
            "sha256": result.sha256,
            "decisions_sha256": result.decisions_sha256,
            "seconds": result.seconds,
            "engine_seconds": result.engine_seconds,
            "log": result.log,
            "log_sha256": result.log_digest,
            "bundle": result.bundle_digest,
            "config_sha256": result.config_digest,
            "machine": result.machine,
            "timing": result.timing,
            "timing_remark": result.timing_remark,
            "captured": result.account.captured,
            "dropped": result.account.dropped,
            "misses": result.misses,
            "modes": list(result.modes),
            "events": [dict(event) for event in result.events],
            "remark": result.remark,
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        return [("Replayed", [{"frames": self.result.frames}])]

    def closing(self) -> list[str]:
        return [self.result.timing_remark]


def replay_log(
    *,
    log: str,
    bundle: Path,
    config: Path | None,
    timing: Timing | None,
    policy: Policy | None,
    frames: int | None,
    host: PluginHost,
    report: Reporter,
) -> Outcome:
    """Replay, and compare with what is asked for."""
    request = ReplayRequest(log, bundle, config, timing, policy or "auto", frames)
    return Outcome(replay(request, host=host, report=report))
