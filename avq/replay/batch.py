"""``avq replay``: one log with one bundle, or every log with every bundle in a worker pool.

Each result of a batch is stored as soon as it is complete, so an interrupted batch can be resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from avq.atomic_file import atomic_write
from avq.bundle import is_bundle, open_bundle
from avq.compare import DifferenceJson
from avq.errors import AvqError, DataError, MachineError, RequestError
from avq.parallel import WorkerPool, worker_pool
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.render.page import Fact, Headline, Tone, key_figures, page, section, table
from avq.replay.command import replay_log
from avq.replay.mining import Mined, mine
from avq.replay.outcome import Outcome, ReplayTotals
from avq.replay.report import COMMENT, PAGE
from avq.sources.uri import local_path

#: The keys of ``ReplayJson``, read back from JSON, and "bundle_path", "yes" and "error"; only these after a failure.
Row = Mapping[str, Any]


class BatchDifference(DifferenceJson):
    """A difference with its log and the digest of its bundle."""

    log: str
    bundle: str


class FailedReplay(TypedDict):
    """A replay that failed, with the three parts of its error."""

    log: str
    what: str
    seen: str
    fix: str


class _Batch(ReplayTotals):
    differences: list[BatchDifference]
    decisions_sha256: str
    engine_seconds: float
    headline: str
    failed: list[FailedReplay]
    replays: list[dict[str, Any]]


class BatchJson(_Batch, total=False):
    """Object of ``avq replay --json`` for several logs or bundles; ``replays`` has the rows of ``BatchResult``."""

    report: dict[str, str]


@dataclass(frozen=True)
class BatchResult:
    """Results of many replays, in the order of the request.

    Attributes:
        rows: per replay the keys of ``avq replay --json``, with ``yes`` and ``error``.
        files: files of the report, by kind; None without a report.
    """

    rows: tuple[Row, ...]
    files: Mapping[str, Path] | None = None

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is not None]

    @property
    def changed(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is None and not row["yes"]]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and not self.failed and not self.changed

    @property
    def headline(self) -> str:
        parts = [f"{len(self.rows)} replays"]
        parts += [f"{len(self.changed)} with differences"] if self.changed else ["none with differences"]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(parts)

    def summary(self) -> BatchJson:
        """Return the object of ``avq replay --json`` over all replays, and the keys of each below ``replays``."""
        done = [row for row in self.rows if row["error"] is None]
        compared = [row["identical"] for row in done if row["identical"] is not None]
        answer: BatchJson = {
            "frames": sum(row["frames"] for row in done),
            "identical": all(compared) and not self.failed if compared else None,
            "differences": [
                cast("BatchDifference", {"log": row["log"], "bundle": row["bundle"], **difference})
                for row in done
                for difference in row["differences"]
            ],
            "sha256": _digest(done, "sha256"),
            "decisions_sha256": _digest(done, "decisions_sha256"),
            "seconds": sum(row["seconds"] for row in done),
            "engine_seconds": sum(row["engine_seconds"] for row in done),
            "headline": self.headline,
            "failed": [cast("FailedReplay", {"log": row["log"], **row["error"]}) for row in self.failed],
            "replays": [dict(row) for row in self.rows],
        }
        if self.files:
            answer["report"] = {kind: str(path) for kind, path in self.files.items()}
        return answer

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        return [("Replays", self.listing())]

    def listing(self) -> list[dict[str, object]]:
        """Return one row per replay; failures first, then differences."""
        order = sorted(self.rows, key=lambda row: (row["error"] is None, row["yes"]))
        return [
            {
                "log": row["log"].rsplit("/", 1)[-1],
                "bundle": Path(row["bundle_path"]).name,
                "frames": row.get("frames", 0),
                "differences": len(row.get("differences", ())),
                "late": row.get("misses", 0),
                "seconds": round(row.get("seconds", 0.0), 1),
                "answer": row["headline"],
            }
            for row in order
        ]

    def footer(self) -> list[str]:
        return [*(f"{kind}: {path}" for kind, path in (self.files or {}).items()), self.headline]

    def with_report(self, folder: Path) -> BatchResult:
        """Write one page and one comment over all replays; the report of each is in a subfolder."""
        files = {"page": folder / PAGE, "comment": folder / COMMENT}
        atomic_write(files["page"], self._page())
        atomic_write(files["comment"], self._comment())
        return replace(self, files=files)

    def _page(self) -> str:
        tone: Tone = "good" if self.passed else "bad"
        reasons = tuple(f"{row['log']}: {row['headline']}" for row in (*self.failed, *self.changed))[:20]
        facts = [
            Fact("replays", str(len(self.rows))),
            Fact("frames", str(self.summary()["frames"])),
            Fact("with differences", str(len(self.changed)), tone="bad" if self.changed else "plain"),
            Fact("failed", str(len(self.failed)), tone="bad" if self.failed else "plain"),
        ]
        sections = [
            section("At a glance", key_figures(facts)),
            section("Every replay", table(self.listing()), lead="Failures come first, then differences."),
        ]
        return page("avq replay", Headline(self.headline, tone, reasons), sections)

    def _comment(self) -> str:
        rows = self.listing()
        names = list(rows[0]) if rows else []
        lines = [f"**{self.headline}**", "", _line(names), _line(["---"] * len(names))]
        return "\n".join([*lines, *(_line([str(value) for value in row.values()]) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _digest(rows: Sequence[Row], key: str) -> str:
    """Return one digest over those of all replays, in order."""
    return hashlib.sha256("\n".join(str(row[key]) for row in rows).encode()).hexdigest()


#: Subfolder of the report for the rows of finished replays.
ROWS = "rows"


@dataclass(frozen=True)
class Job:
    """One log with one bundle: plain data with absolute paths, for a worker on any machine with those files.

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
    pool: WorkerPool,
    report_folder: Path | None,
    report: Reporter,
    **options: Any,
) -> BatchResult:
    """Replay every log with every bundle; the results have this order.

    A replay that fails, or whose workers all died, is a row with ``error``; the others continue. With a report
    folder, finished rows are stored there, and the same call resumes an interrupted batch.

    Args:
        logs: paths or URIs.
        bundles: bundle folders.
        pool: runs the replays.
        report_folder: None writes no report.
        report: progress and warnings.
        options: the other arguments of ``replay_log``; baselines are folders of references, or a bundle.
    """
    jobs = [
        Job(absolute(log), bundle.resolve(), _folder(report_folder, number, log), tuple(options.items()))
        for number, (log, bundle) in enumerate((log, bundle) for log in logs for bundle in bundles)
    ]
    cache = _RowCache(report_folder)
    rows = {job: row for job in jobs if (row := cache.get(job)) is not None}
    if rows:
        report.message(f"{len(rows)} of {len(jobs)} replays are complete from the last run")
    missing = [job for job in jobs if job not in rows]
    done: Iterator[tuple[Job, dict[str, Any]]] = zip(
        missing, pool.map(run_job, missing, on_lost=_lost), strict=True
    )
    for job, row in report.track(done, "replays", len(missing)):
        cache.put(job, row)
        rows[job] = row
        if row["error"] is not None:
            report.warning(f"{job.name}: {row['error']['what']}")
    result = BatchResult(tuple(rows[job] for job in jobs))
    return result if report_folder is None else result.with_report(report_folder)


def run_job(job: Job) -> dict[str, Any]:
    """Run one replay and return its row; errors of the replay become its ``error``."""
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
    except Exception as error:  # one log must not end the batch; the row names the error
        return head | _failure(f"the replay failed: {error!r}", "a bug", "replay this log alone")
    answer: dict[str, Any] = json.loads(json.dumps(outcome.summary(), default=str))
    return answer | head | {"yes": outcome.passed, "headline": outcome.headline}


def _lost(job: Job, error: MachineError) -> dict[str, Any]:
    head = {"log": job.log, "bundle_path": str(job.bundle), "error": None}
    return head | _failure(error.what, error.seen, error.fix)


def _failure(what: str, seen: str, fix: str) -> dict[str, Any]:
    return {"yes": False, "headline": what, "error": {"what": what, "seen": seen, "fix": fix}}


def absolute(log: str) -> str:
    """Return the log's URI with an absolute path: workers start in another folder."""
    if "://" in log:
        return log
    path = local_path(log)
    return str(path.resolve()) + log[len(str(path)) :]


def _folder(root: Path | None, number: int, log: str) -> Path | None:
    stem = "".join(c if c.isalnum() else "_" for c in log.rsplit("/", 1)[-1])[:60]
    return None if root is None else root.resolve() / f"{number:04d}_{stem}"


class _RowCache:
    """Finished rows on disk, by the digest of log, bundle and options. Failed replays are repeated."""

    def __init__(self, report_folder: Path | None) -> None:
        self._folder = None if report_folder is None else report_folder / ROWS
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"the folder {report_folder} cannot be created",
                    seen=str(error),
                    fix="choose another --report",
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
            atomic_write(path, json.dumps(row))

    def _path(self, job: Job) -> Path | None:
        if self._folder is None:
            return None
        try:
            bundle = open_bundle(job.bundle, allow_unaccepted=True).manifest.digest
        except AvqError:
            return None
        files = [local_path(job.log), *(value for _, value in job.options if isinstance(value, Path))]
        stamps = [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files if p.is_file()]
        key = [job.log, bundle, str(job.options), str(job.report_folder), *stamps]
        return self._folder / f"{hashlib.sha256('|'.join(key).encode()).hexdigest()[:32]}.json"


def run_replay(
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
) -> Outcome | BatchResult | Mined:
    """Run the command: one replay, a batch, or mining.

    Args:
        logs: paths or URIs.
        bundles: bundle folders.
        ray: the flag ``--ray``; None works in this process.
        mine_folder: folder of the mined set; None replays.
        mine_count: number of frames to mine.
        licence: licence of the mined pictures.
        host: plugins.
        report: progress and warnings.
        options: the other arguments of ``replay_log``, which names the errors raised.
    """
    if mine_folder is not None:
        _check_mining(bundles, options)
        with worker_pool(ray) as pool:
            return mine(
                logs=[absolute(log) for log in logs],
                bundle=bundles[0],
                other=options["baseline"],
                folder=mine_folder,
                count=mine_count,
                licence=licence,
                frames=options["frames"],
                pool=pool,
                host=host,
                report=report,
            )
    if len(logs) == len(bundles) == 1 and ray is None:
        return replay_log(log=logs[0], bundle=bundles[0], host=host, report=report, **options)
    _check(logs, bundles, options)
    with worker_pool(ray) as pool:
        return replay_many(logs=logs, bundles=bundles, pool=pool, report=report, **options)


def _check(logs: Sequence[str], bundles: Sequence[Path], options: dict[str, Any]) -> None:
    baseline = options["baseline"]
    if baseline is not None and baseline.suffix.lower() == ".mcap" and len(logs) > 1:
        raise RequestError(
            "--baseline with several logs needs a folder of references",
            seen=f"--baseline {baseline}, {len(logs)} logs",
            fix="name a folder: it holds one reference per log",
        )
    if options["accept"] and len(bundles) > 1:
        raise RequestError(
            "--accept needs exactly one bundle",
            seen=f"--accept with {len(bundles)} bundles",
            fix="name only the bundle that is known to be correct",
        )


def _check_mining(bundles: Sequence[Path], options: dict[str, Any]) -> None:
    if len(bundles) > 1:
        raise RequestError(
            "--mine needs exactly one bundle",
            seen=f"{len(bundles)} bundles",
            fix="name the second one with --baseline: frames on which they disagree are mined",
        )
    baseline = options["baseline"]
    if baseline is not None and not is_bundle(baseline):
        raise RequestError(
            "--baseline of --mine must be a bundle",
            seen=f"--baseline {baseline}",
            fix="name a bundle, or leave it out to compare with the bundle's own float network",
        )
    for flag in ("accept", "report_folder"):
        if options[flag]:
            raise RequestError(
                f"--mine cannot be combined with --{flag.partition('_')[0]}",
                seen=f"--mine and --{flag.partition('_')[0]}",
                fix="write the report or the reference in a second call",
            )
