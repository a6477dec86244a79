"""Many replays at once: logs times bundles, over the workers of a fleet, each result kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.atomic_file import write_whole
from avq.bundle import open_bundle
from avq.errors import AvqError, DataError, MachineError
from avq.parallel import Fleet
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.replay.command import replay_log
from avq.replay.merged import Merged
from avq.sources.uri import local_path

#: Finished replays of an interrupted run, below the folder of the report.
ROWS = "rows"


@dataclass(frozen=True)
class Job:
    """One log with one bundle; plain data with absolute paths, for a worker on any machine that sees them.

    Attributes:
        options: the other arguments of ``replay_log``.
    """

    log: str
    bundle: Path
    report_folder: Path | None
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{self.log} with {self.bundle.name}"


def replay_many(
    *,
    logs: Sequence[str],
    bundles: Sequence[Path],
    fleet: Fleet,
    report_folder: Path | None,
    report: Reporter,
    **options: Any,
) -> Merged:
    """Every log with every bundle, in this order whatever finishes first.

    A replay that fails, or whose workers died every time, is a row that says why; the others go on. With a report
    folder finished rows are kept there, and starting again takes up where the last run stopped.

    Args:
        options: the other arguments of ``replay_log``; baselines are folders of references, or a bundle.
    """
    jobs = [
        Job(absolute(log), bundle.resolve(), _folder(report_folder, number, log), tuple(options.items()))
        for number, (log, bundle) in enumerate((log, bundle) for log in logs for bundle in bundles)
    ]
    kept = _Kept(report_folder)
    rows = {job: row for job in jobs if (row := kept.get(job)) is not None}
    if rows:
        report.message(f"{len(rows)} of {len(jobs)} replays are there from the last run")
    missing = [job for job in jobs if job not in rows]
    done = _with_jobs(missing, fleet.map(run_job, missing, on_lost=_lost))
    for job, row in report.track(done, "replays", len(missing)):
        kept.put(job, row)
        rows[job] = row
        if row["error"] is not None:
            report.warning(f"{job.name}: {row['error']['what']}")
    merged = Merged(tuple(rows[job] for job in jobs))
    return merged if report_folder is None else merged.written(report_folder)


def run_job(job: Job) -> dict[str, Any]:
    """One row: the keys of ``avq replay --json``, ``yes`` and ``error``. Raises nothing that is about the job."""
    head = {"log": job.log, "bundle_path": str(job.bundle), "error": None}
    try:
        outcome = replay_log(
            log=job.log,
            bundle=job.bundle,
            report_folder=job.report_folder,
            host=PluginHost(),
            report=Silent(),
            **dict(job.options),
        )
    except AvqError as error:
        return head | _failure(error.what, error.seen, error.fix)
    except Exception as error:  # one log must not end the night; the row says what it was
        return head | _failure(f"the replay failed: {error!r}", "a bug", "replay this log alone")
    answer: dict[str, Any] = json.loads(json.dumps(outcome.summary(), default=str))
    return answer | head | {"yes": outcome.answer_is_yes, "headline": outcome.headline}


def _lost(job: Job, error: MachineError) -> dict[str, Any]:
    head = {"log": job.log, "bundle_path": str(job.bundle), "error": None}
    return head | _failure(error.what, error.seen, error.fix)


def _failure(what: str, seen: str, fix: str) -> dict[str, Any]:
    return {"yes": False, "headline": what, "error": {"what": what, "seen": seen, "fix": fix}}


def _with_jobs(jobs: Sequence[Job], rows: Iterator[dict[str, Any]]) -> Iterator[tuple[Job, dict[str, Any]]]:
    return zip(jobs, rows, strict=True)


def absolute(log: str) -> str:
    """Workers start in folders of their own."""
    if "://" in log:
        return log
    path = local_path(log)
    return str(path.resolve()) + log[len(str(path)) :]


def _folder(root: Path | None, number: int, log: str) -> Path | None:
    stem = "".join(c if c.isalnum() else "_" for c in log.rsplit("/", 1)[-1])[:60]
    return None if root is None else root.resolve() / f"{number:04d}_{stem}"


class _Kept:
    """Rows on disk by what they depend on: log, bundle, options. Failed ones are tried again."""

    def __init__(self, report_folder: Path | None) -> None:
        self._folder = None if report_folder is None else report_folder / ROWS
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"{report_folder} cannot be made", seen=str(error), fix="choose another --report"
                ) from None

    def get(self, job: Job) -> dict[str, Any] | None:
        path = self._path(job)
        if path is None:
            return None
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return row

    def put(self, job: Job, row: dict[str, Any]) -> None:
        path = self._path(job)
        if path is not None and row["error"] is None:
            write_whole(path, json.dumps(row))

    def _path(self, job: Job) -> Path | None:
        if self._folder is None:
            return None
        try:
            bundle = open_bundle(job.bundle, allow_unaccepted=True).manifest.digest
        except AvqError:
            return None
        files = [local_path(job.log), *(value for _, value in job.options if isinstance(value, Path))]
        stamps = [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files if p.is_file()]
        told = [job.log, bundle, str(job.options), str(job.report_folder), *stamps]
        return self._folder / f"{hashlib.sha256('|'.join(told).encode()).hexdigest()[:32]}.json"
