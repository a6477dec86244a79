"""Outcome of one replay: JSON keys, tables for the terminal, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from avq.builder.plan_diff import DiffRow, summarise
from avq.compare import Difference, DifferenceJson
from avq.replay.differences import FramePair, Tier, Tolerances
from avq.replay.metric import ALL, LossRow, label_of
from avq.replay.result import ReplayResult
from avq.replay.stage_times import PairedRow, PairedTimes, StageRow, table_of
from avq.replay.timing import Timing
from avq.replay.verdict import ChangesJson, Verdict

#: Rows on the terminal; --json and the report have all.
_SHOWN = 20


class ReplayTotals(TypedDict):
    """Totals of every object of ``avq replay --json``; ``identical`` is null without a comparison."""

    frames: int
    identical: bool | None
    sha256: str
    seconds: float


class AcceptedJson(TypedDict):
    """The reference that was written: its file, and its address."""

    path: Path
    address: str


class _Replay(ReplayTotals):
    differences: list[DifferenceJson]
    decisions_sha256: str
    engine_seconds: float
    headline: str
    reasons: list[str]
    log: str
    log_sha256: str
    bundle: str
    config_sha256: str
    machine: str
    boxes: int
    timing: Timing
    timing_remark: str
    captured: int
    dropped: dict[str, int]
    misses: int
    deadline_ms: float
    deadline_remark: str
    modes: list[str]
    events: list[dict[str, Any]]
    stages: list[StageRow] | list[PairedRow]
    remark: str


class ReplayJson(_Replay, total=False):
    """Object of ``avq replay --json`` for one log and one bundle."""

    # with a comparison
    tier: Tier
    tier_why: str
    changes: ChangesJson
    by_class_and_size: list[LossRow]
    suffering: list[LossRow]
    reference: str
    bundle_differences: list[DiffRow]
    # with --accept
    accepted: AcceptedJson
    # with --report
    report: dict[str, Path]


@dataclass(frozen=True)
class Accepted:
    """A reference that was written: its path, its address, and the tolerances learned for it."""

    path: Path
    address: str
    tolerances: Tolerances


@dataclass(frozen=True)
class Outcome:
    """One replay and its comparison.

    Attributes:
        result: the replay.
        reference: the replay it was compared with; None without a comparison.
        reference_name: path or address of the reference.
        verdict: result of the comparison.
        paired: stage times of both bundles on the same pictures.
        timing: exceeded limits of stage times.
        built: differences between the builds of the two bundles, where both are available.
        accepted: the reference that was written.
        files: files of the report, by kind.
    """

    result: ReplayResult
    reference: ReplayResult | None = None
    reference_name: str = ""
    verdict: Verdict | None = None
    paired: PairedTimes | None = None
    timing: tuple[Difference, ...] = ()
    built: tuple[DiffRow, ...] = ()
    accepted: Accepted | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def differences(self) -> tuple[Difference, ...]:
        differences = self.verdict.differences if self.verdict is not None else ()
        return (*differences, *self.timing)

    @property
    def passed(self) -> bool:
        """Whether there is no difference, or a reference was just accepted."""
        return self.accepted is not None or not self.differences

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        if self.verdict is None:
            return f"{self.result.frames} frames replayed; no comparison"
        if self.verdict.identical and not self.timing:
            return f"Identical: {self.result.frames} frames, every box and every decision"
        if not self.differences:
            return f"No difference above the limits in {len(self.verdict.pairs)} frames"
        frames = len({(d.camera, d.frame) for d in self.differences})
        return f"{len(self.differences)} differences in {frames} of {len(self.verdict.pairs)} frames"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons of a failure, and the classes with the largest losses."""
        if self.verdict is None:
            return ()
        reasons = [*self.verdict.reasons, *(d.note for d in self.timing)]
        if self.differences and self.built:
            reasons.append(f"the bundles differ in {', '.join(summarise(self.built))}")
        worst = self.verdict.metric.suffering(self.verdict.allowed)[:5] if self.differences else []
        return (*reasons, *(loss_line(row) for row in worst))

    def summary(self) -> ReplayJson:
        """Return the object of ``avq replay --json``."""
        result, verdict = self.result, self.verdict
        answer: ReplayJson = {
            "frames": result.frames,
            "identical": verdict.identical and not self.timing if verdict is not None else None,
            "differences": [difference.as_dict() for difference in self.differences],
            "sha256": result.sha256,
            "decisions_sha256": result.decisions_sha256,
            "seconds": result.seconds,
            "engine_seconds": result.engine_seconds,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "log": result.log,
            "log_sha256": result.log_digest,
            "bundle": result.bundle_digest,
            "config_sha256": result.config_digest,
            "machine": result.machine,
            "boxes": sum(len(seen) for seen in result.detections),
            "timing": result.timing,
            "timing_remark": result.timing_remark,
            "captured": result.account.captured,
            "dropped": result.account.dropped,
            "misses": result.misses,
            "deadline_ms": result.deadline_ns / 1e6,
            "deadline_remark": result.deadline_remark,
            "modes": list(result.modes),
            "events": [dict(event) for event in result.events],
            "stages": self.paired.rows() if self.paired is not None else table_of(result).rows(),
            "remark": result.remark,
        }
        if verdict is not None:
            answer |= {
                "tier": verdict.tier,
                "tier_why": verdict.why,
                "changes": verdict.changes(),
                "by_class_and_size": verdict.metric.rows(),
                "suffering": verdict.metric.suffering(verdict.allowed),
                "reference": self.reference_name,
                "bundle_differences": [row.copy() for row in self.built],
            }
        if self.accepted is not None:
            answer["accepted"] = {"path": self.accepted.path, "address": self.accepted.address}
        if self.files:
            answer["report"] = dict(self.files)
        return answer

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        """Return the tables for the terminal."""
        result = self.result
        dropped = ", ".join(f"{cause} {count}" for cause, count in result.account.dropped.items())
        share = result.engine_seconds / result.seconds if result.seconds else 0.0
        totals = {
            "captured": result.account.captured,
            "published": result.frames,
            "dropped": dropped or "none",
            "late": result.misses,
            "boxes": sum(len(seen) for seen in result.detections),
            "seconds": round(result.seconds, 2),
            "in the engine": f"{share:.0%}",
        }
        tables: list[tuple[str, Sequence[Mapping[str, object]]]] = [("Replayed", [totals])]
        if self.verdict is not None:
            changes = {name.replace("_", " "): value for name, value in self.verdict.changes().items()}
            tables.append((f"Compared ({self.verdict.tier})", [changes]))
            if self.differences:
                tables.append(("By class and size, score >= 0.5", metric_rows(self.verdict.metric.rows())))
                tables.append(
                    (
                        f"Differences, the first {_SHOWN}",
                        [difference_row(d, result.labels) for d in self.differences[:_SHOWN]],
                    )
                )
        rows = self.paired.rows() if self.paired is not None else table_of(result).rows()
        tables.append(("Stage times on this machine, ms", rows))
        return tables

    def footer(self) -> list[str]:
        """Return the lines below the tables; the headline is the last one."""
        lines = [self.result.timing_remark, self.result.deadline_remark]
        if self.result.remark:
            lines.append(f"the log: {self.result.remark}")
        if self.verdict is not None:
            lines.append(self.verdict.why)
            lines += self.reasons
        if self.accepted is not None:
            lines.append(f"accepted as reference {self.accepted.address[:12]}: {self.accepted.path}")
        lines += [f"{kind}: {path}" for kind, path in self.files.items()]
        return [*lines, self.headline]

    def worst_pairs(self) -> list[FramePair]:
        """Return frames with changes, the largest first."""
        pairs = self.verdict.pairs if self.verdict is not None else ()
        ranked = sorted(pairs, key=lambda pair: -pair.badness)
        return [pair for pair in ranked if pair.badness > 0.0]


def loss_line(row: LossRow) -> str:
    """Return the losses of one class and size in one line."""
    lost = f"{row['class']}, {row['size']}: {row['lost']} of {row['boxes']} boxes lost"
    return f"{lost}, confidence {row['confidence_shift']:+.3f}"


def difference_row(difference: Difference, labels: Sequence[str]) -> dict[str, object]:
    """Return one difference as a row of a table."""
    a, b = difference.a, difference.b
    if difference.field == "class_id":
        a, b = (label_of(labels, int(value)) for value in (a, b))
    return {
        "frame": difference.frame,
        "camera": difference.camera,
        "field": difference.field,
        "reference": _short(a, labels),
        "now": _short(b, labels),
        "note": difference.note,
    }


def metric_rows(rows: Sequence[LossRow]) -> list[dict[str, object]]:
    """Return rows of the metric table: totals first, classes by size last."""
    return [
        {
            "class": row["class"],
            "size": row["size"],
            "boxes": row["boxes"],
            "lost": row["lost"],
            "new": row["appeared"],
            "recall": _share(row["recall"]),
            "precision": _share(row["precision"]),
            "AP": "" if row["ap"] is None or row["ap"] < 0 else f"{row['ap']:.3f}",
            "confidence": f"{row['confidence_shift']:+.3f}",
        }
        for row in rows
        if row["boxes"] or row["appeared"] or row["class"] == ALL
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(value: Any, labels: Sequence[str]) -> str:
    """Format a box as "car 0.91 at 10 20 30 40", and numbers with four digits."""
    if isinstance(value, Mapping) and "box_xyxy_px" in value:
        corners = " ".join(f"{v:.0f}" for v in value["box_xyxy_px"])
        return f"{label_of(labels, value['class_id'])} {value['score']:.2f} at {corners}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())[:80]
    if isinstance(value, list | tuple):
        return " ".join(_short(item, labels) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "\u2013" if value is None else str(value)
