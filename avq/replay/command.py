"""``avq replay``: replay, compare with a reference or another bundle, accept, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from avq.builder.plan_diff import diff
from avq.bundle import is_bundle
from avq.compare import Difference
from avq.errors import RequestError
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.differences import Tier, Tolerances, learned
from avq.replay.log_sources import open_log
from avq.replay.outcome import Accepted, Outcome
from avq.replay.reference import Reference, read_reference, require_acceptable, write_reference
from avq.replay.result import ReplayResult
from avq.replay.run import Policy, ReplayRequest, build_metrics, replay
from avq.replay.stage_times import PairedTimes, over_limits, paired_times, slower, timed_alone
from avq.replay.timing import Timing
from avq.replay.verdict import judge, require_same_log

#: No-change runs that tolerances are learned from.
RUNS = 3


@dataclass(frozen=True)
class Comparing:
    """What a replay is held against.

    Attributes:
        baseline: a reference, a folder of references, or a bundle that is replayed as well; None for nothing.
        tier: None takes what the two allow.
        tolerances: fields of ``Tolerances`` that replace the reference's.
        limits: milliseconds by stage and figure, such as {"infer_p99_ms": 12.0}.
        max_ratio: tolerated total time / the baseline bundle's, paired; None for no limit.
        by_loss: another bundle differs only where it loses more than the tolerances allow.
    """

    baseline: Path | None = None
    tier: Tier | None = None
    tolerances: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[tuple[str, float], ...] = ()
    max_ratio: float | None = None
    by_loss: bool = False


def replay_log(
    *,
    log: str,
    bundle: Path,
    config: Path | None = None,
    timing: Timing | None = None,
    policy: Policy | None = None,
    frames: int | None = None,
    baseline: Path | None = None,
    accept: bool = False,
    runs: int = RUNS,
    tier: Tier | None = None,
    by_loss: bool = False,
    report_folder: Path | None = None,
    host: PluginHost,
    report: Reporter,
) -> Outcome:
    """The whole command.

    Raises:
        RequestError: a reference of another log or configuration, or --accept where it must not be.
        DataError: log or reference cannot be read.
    """
    request = ReplayRequest(log, bundle, config, timing, policy or "auto", frames)
    asked = Comparing(baseline, tier, by_loss=by_loss)
    if accept:
        outcome = accept_reference(request, asked, host, report, runs=runs)
    else:
        outcome = compare(request, asked, host, report)
    return outcome if report_folder is None else reported(outcome, report_folder, host)


def compare(request: ReplayRequest, asked: Comparing, host: PluginHost, report: Reporter) -> Outcome:
    """Replay, and hold the result against what is asked for."""
    baseline = asked.baseline
    if baseline is not None and is_bundle(baseline):
        return _against_bundle(request, baseline, asked, host, report)
    reference = None
    if baseline is not None:
        early = None if baseline.is_dir() else read_reference(baseline)  # before minutes of replay
        known = early.result.benches if early is not None else {}
        if early is not None:
            require_same_log(early.result, open_log(request.log, host.sources()).digest(), request.log)
        result = replay(replace(request, known=known), host=host, report=report)
        reference = early or read_reference(_file(baseline, result))
    else:
        result = replay(request, host=host, report=report)
    timing: list[Difference] = []
    if asked.limits:
        alone = timed_alone(open_log(request.log, host.sources()), request.bundle, host)
        timing = over_limits(alone, dict(asked.limits))
    return replace(_judged(result, reference, asked), timing=tuple(timing))


def _judged(result: ReplayResult, reference: Reference | None, asked: Comparing) -> Outcome:
    if reference is None:
        return Outcome(result)
    allowed = msgspec.structs.replace(reference.tolerances, **asked.tolerances)
    verdict = judge(reference.result, result, allowed, asked.tier, by_loss=asked.by_loss)
    return Outcome(result, reference.result, f"reference {reference.address[:12]}", verdict)


def _against_bundle(
    request: ReplayRequest, other: Path, asked: Comparing, host: PluginHost, report: Reporter
) -> Outcome:
    """Both bundles in this very run, so that their times can be paired too."""
    first = replay(replace(request, bundle=other), host=host, report=report)
    known = {first.bundle_digest: build_metrics(other)}
    result = replay(replace(request, known=known), host=host, report=report)
    log = open_log(request.log, host.sources())
    paired: PairedTimes = paired_times(log, other, request.bundle, host)
    found: list[Difference] = over_limits(paired.new, dict(asked.limits))
    if asked.max_ratio is not None:
        found += slower(paired, asked.max_ratio)
    allowed = msgspec.structs.replace(Tolerances(), **asked.tolerances)
    verdict = judge(first, result, allowed, asked.tier, by_loss=asked.by_loss)
    built = tuple(diff(other, request.bundle)["differences"])
    return Outcome(result, first, str(other), verdict, paired, tuple(found), built)


def _place(baseline: Path | None) -> Path:
    if baseline is None or is_bundle(baseline):
        raise RequestError(
            "--accept needs a place for the reference",
            seen="no --baseline" if baseline is None else f"--baseline {baseline}, a bundle",
            fix="add --baseline REF.mcap, or a folder that keeps references by their log",
        )
    return baseline


def accept_reference(
    request: ReplayRequest, asked: Comparing, host: PluginHost, report: Reporter, *, runs: int = RUNS
) -> Outcome:
    """Replay ``runs`` times, learn the spread, say what changed against the reference there was, and write.

    Raises RequestError under CI, and where the baseline is no place for a reference.
    """
    require_acceptable()
    baseline = _place(asked.baseline)
    results = [replay(request, host=host, report=report) for _ in range(max(1, runs))]
    tolerances = learned([result.detections for result in results])
    path = _file(baseline, results[0])
    outcome = Outcome(results[0])
    if path.exists():
        outcome = _judged(results[0], read_reference(path), asked)
    if not any(len(seen) for seen in results[0].detections):
        report.warning("the reference holds no box at all: it will notice new ones only")
    address = write_reference(path, results[0], tolerances)
    return replace(outcome, accepted=Accepted(path, address, tolerances))


def _file(baseline: Path, result: ReplayResult) -> Path:
    """A folder keeps one reference per log and configuration."""
    if baseline.suffix.lower() == ".mcap" and not baseline.is_dir():
        return baseline
    return baseline / f"{result.log_digest[:16]}-{result.config_digest[:16]}.mcap"


def reported(outcome: Outcome, folder: Path, host: PluginHost) -> Outcome:
    """The outcome with its report written into ``folder``."""
    from avq.replay.report import write_report

    return replace(outcome, files=write_report(outcome, folder, host))
