"""One replay of ``avq replay``: compare with a reference or another bundle, accept a reference, write a report."""

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
from avq.replay.differences import Tier, Tolerances, learn_tolerances
from avq.replay.log_sources import open_log
from avq.replay.outcome import Accepted, Outcome
from avq.replay.reference import Reference, read_reference, require_acceptable, write_reference
from avq.replay.result import ReplayResult
from avq.replay.run import Policy, ReplayRequest, build_metrics, replay
from avq.replay.stage_times import PairedTimes, over_limits, paired_times, slower, time_bundle
from avq.replay.timing import Timing
from avq.replay.verdict import judge, require_same_log

#: Unchanged runs from which tolerances are learned.
RUNS = 3


@dataclass(frozen=True)
class CompareOptions:
    """Baseline and limits of a replay.

    Attributes:
        baseline: a reference, a folder of references, or a bundle to replay as well; None compares with nothing.
        tier: None uses the strictest tier that bundles and machines allow.
        tolerances: fields of ``Tolerances`` that replace those of the reference.
        limits: milliseconds by stage and figure, such as ("infer_p99_ms", 12.0).
        max_ratio: largest total time / time of the baseline bundle, paired; None for no limit.
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
    """Replay one log with one bundle, and compare, accept and report as the arguments say.

    Args:
        log: path or URI.
        bundle: the bundle folder.
        config, timing, policy, frames: as in ``ReplayRequest``.
        baseline, tier, by_loss: as in ``CompareOptions``.
        accept: write the reference instead of comparing.
        runs: number of replays from which an accepted reference learns its tolerances.
        report_folder: None writes no report.
        host: plugins.
        report: progress and warnings.

    Raises:
        RequestError: the reference is of another log or configuration, or ``accept`` is not allowed.
        DataError: log or reference cannot be read.
    """
    request = ReplayRequest(log, bundle, config, timing, policy or "auto", frames)
    options = CompareOptions(baseline, tier, by_loss=by_loss)
    if accept:
        outcome = accept_reference(request, options, host, report, runs=runs)
    else:
        outcome = compare(request, options, host, report)
    return outcome if report_folder is None else with_report(outcome, report_folder, host)


def compare(request: ReplayRequest, options: CompareOptions, host: PluginHost, report: Reporter) -> Outcome:
    """Replay a log and compare the result with the baseline."""
    baseline = options.baseline
    if baseline is not None and is_bundle(baseline):
        return _against_bundle(request, baseline, options, host, report)
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
    if options.limits:
        times = time_bundle(open_log(request.log, host.sources()), request.bundle, host)
        timing = over_limits(times, dict(options.limits))
    return replace(_compared(result, reference, options), timing=tuple(timing))


def _compared(result: ReplayResult, reference: Reference | None, options: CompareOptions) -> Outcome:
    if reference is None:
        return Outcome(result)
    allowed = msgspec.structs.replace(reference.tolerances, **options.tolerances)
    verdict = judge(reference.result, result, allowed, options.tier, by_loss=options.by_loss)
    return Outcome(result, reference.result, f"reference {reference.address[:12]}", verdict)


def _against_bundle(
    request: ReplayRequest, other: Path, options: CompareOptions, host: PluginHost, report: Reporter
) -> Outcome:
    """Replay both bundles in one run, which also pairs their stage times."""
    first = replay(replace(request, bundle=other), host=host, report=report)
    known = {first.bundle_digest: build_metrics(other)}
    result = replay(replace(request, known=known), host=host, report=report)
    log = open_log(request.log, host.sources())
    paired: PairedTimes = paired_times(log, other, request.bundle, host)
    timing: list[Difference] = over_limits(paired.new, dict(options.limits))
    if options.max_ratio is not None:
        timing += slower(paired, options.max_ratio)
    allowed = msgspec.structs.replace(Tolerances(), **options.tolerances)
    verdict = judge(first, result, allowed, options.tier, by_loss=options.by_loss)
    built = tuple(diff(other, request.bundle)["differences"])
    return Outcome(result, first, str(other), verdict, paired, tuple(timing), built)


def _reference_path(baseline: Path | None) -> Path:
    if baseline is None or is_bundle(baseline):
        raise RequestError(
            "--accept needs --baseline with the path of the reference",
            seen="no --baseline" if baseline is None else f"--baseline {baseline}, a bundle",
            fix="add --baseline REF.mcap, or a folder of references",
        )
    return baseline


def accept_reference(
    request: ReplayRequest, options: CompareOptions, host: PluginHost, report: Reporter, *, runs: int = RUNS
) -> Outcome:
    """Replay ``runs`` times, learn tolerances, compare with the previous reference, and write the new one.

    Raises:
        RequestError: the environment is CI, or the baseline is not the path of a reference.
    """
    require_acceptable()
    baseline = _reference_path(options.baseline)
    results = [replay(request, host=host, report=report) for _ in range(max(1, runs))]
    tolerances = learn_tolerances([result.detections for result in results])
    path = _file(baseline, results[0])
    outcome = Outcome(results[0])
    if path.exists():
        outcome = _compared(results[0], read_reference(path), options)
    if not any(len(seen) for seen in results[0].detections):
        report.warning("the reference holds no boxes: it can detect new ones only")
    address = write_reference(path, results[0], tolerances)
    return replace(outcome, accepted=Accepted(path, address, tolerances))


def _file(baseline: Path, result: ReplayResult) -> Path:
    """Return the file of the reference; a folder holds one per log and configuration."""
    if baseline.suffix.lower() == ".mcap" and not baseline.is_dir():
        return baseline
    return baseline / f"{result.log_digest[:16]}-{result.config_digest[:16]}.mcap"


def with_report(outcome: Outcome, folder: Path, host: PluginHost) -> Outcome:
    """Write the report into ``folder`` and return the outcome with its files."""
    from avq.replay.report import write_report

    return replace(outcome, files=write_report(outcome, folder, host))
