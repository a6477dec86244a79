"""Verdict on two replays of one log: identical, or which differences exceed the limits of the tier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from avq.compare import Difference
from avq.errors import DataError, RequestError
from avq.replay.differences import (
    FramePair,
    Tier,
    Tolerances,
    box_differences,
    decision_differences,
    new_events,
    pair_frames,
    tier_for,
)
from avq.replay.metric import Metric, measure, metric_differences
from avq.replay.result import ReplayResult


class ChangesJson(TypedDict):
    """Counts and sizes of all changes over all frames; ``_px`` in pixels of the picture."""

    frames: int
    frames_in_one_run: int
    matched: int
    moved: int
    rescored: int
    class_flips: int
    vanished: int
    appeared: int
    mean_iou: float
    max_centre_px: float
    max_corner_px: float
    mean_score_shift: float
    max_score_shift: float


@dataclass(frozen=True)
class Verdict:
    """Result of a comparison.

    Attributes:
        tier: the comparison that applied.
        why: reason for the tier.
        identical: whether detections and decisions agree bit for bit.
        differences: differences above the limits of the tier; empty means passed.
        reasons: reasons of a failure, in words.
        pairs: every frame with its boxes matched, for reports.
        metric: losses per class and size, in every tier.
        allowed: the limits used.
    """

    tier: Tier
    why: str
    identical: bool
    differences: tuple[Difference, ...]
    reasons: tuple[str, ...]
    pairs: tuple[FramePair, ...]
    metric: Metric
    allowed: Tolerances

    def changes(self) -> ChangesJson:
        """Return counts of all changes over all frames, also of tolerated ones."""
        matches = [match for pair in self.pairs for match in pair.matches]
        return {
            "frames": len(self.pairs),
            "frames_in_one_run": sum(pair.a is None or pair.b is None for pair in self.pairs),
            "matched": len(matches),
            "moved": sum(match.corner_px != 0.0 for match in matches),
            "rescored": sum(match.score_shift != 0.0 for match in matches),
            "class_flips": sum(match.class_flip for match in matches),
            "vanished": sum(len(pair.vanished) for pair in self.pairs),
            "appeared": sum(len(pair.appeared) for pair in self.pairs),
            "mean_iou": _mean([match.iou for match in matches]),
            "max_centre_px": _largest([match.centre_px for match in matches]),
            "max_corner_px": _largest([match.corner_px for match in matches]),
            "mean_score_shift": _mean([match.score_shift for match in matches]),
            "max_score_shift": _largest([abs(match.score_shift) for match in matches]),
        }


def judge(
    reference: ReplayResult,
    result: ReplayResult,
    allowed: Tolerances,
    tier: Tier | None = None,
    *,
    by_loss: bool = False,
) -> Verdict:
    """Compare a replay with its reference.

    In the metric tier every change above the tolerances is a difference; with ``by_loss`` only changes of a bundle
    that loses more than the limits, and additional dropped frames and alerts.

    Args:
        reference: the accepted replay.
        result: the new replay.
        allowed: limits.
        tier: None uses the strictest tier that applies.
        by_loss: count losses only.

    Raises:
        RequestError: the two are of different logs, configurations or classes.
        DataError: they have no frame in common.
    """
    require_same_request(reference, result)
    pairs = pair_frames(reference.detections, result.detections)
    if not any(pair.a is not None and pair.b is not None for pair in pairs):
        raise DataError(
            "the two replays have no frame in common",
            seen=f"{reference.frames} and {result.frames} frames, first {pairs[0].key}",
            fix="replay both with --every-frame",
        )
    metric = measure(pairs, result.labels, allowed)
    settled, why = tier_for(reference, result, allowed)
    if tier is not None and tier != settled:
        settled, why = tier, f"as requested, instead of {settled}"
    if settled == "metric" and by_loss:
        why = "another bundle: judged by its losses"
    timed = "measured" not in (reference.timing, result.timing)
    if settled == "metric":
        differences, reasons = _metric(
            reference, result, pairs, metric, allowed, timed=timed, by_loss=by_loss
        )
    else:
        differences = box_differences(pairs, settled, allowed)
        differences += decision_differences(reference, result) if timed else []
        reasons = []
    identical = reference.sha256 == result.sha256 and (
        not timed or reference.decisions_sha256 == result.decisions_sha256
    )
    differences.sort(key=lambda d: (d.camera, d.frame))
    all_reasons = (*reasons, *([_counted(differences)] if differences else []))
    return Verdict(settled, why, identical, tuple(differences), all_reasons, pairs, metric, allowed)


def _metric(
    reference: ReplayResult,
    result: ReplayResult,
    pairs: Sequence[FramePair],
    metric: Metric,
    allowed: Tolerances,
    *,
    timed: bool,
    by_loss: bool,
) -> tuple[list[Difference], list[str]]:
    """Compare with another bundle, which has other stage times: dropped frames and new alerts count, ages do not."""
    events = new_events(reference, result) if timed else []
    if not by_loss:
        differences = box_differences(pairs, "metric", allowed) + events
        return differences or _without_boxes(pairs, metric), list(metric.reasons)
    differences = _one_sided(pairs) + events
    if metric.reasons:
        differences += metric_differences(pairs, allowed) or [_nothing(pairs[0], metric.reasons[0])]
    return differences, list(metric.reasons)


def _without_boxes(pairs: Sequence[FramePair], metric: Metric) -> list[Difference]:
    """Return a difference when neither bundle has a box: such an agreement proves nothing."""
    any_box = any(len(side) for pair in pairs for side in (pair.a, pair.b) if side is not None)
    return [] if any_box else [_nothing(pairs[0], metric.reasons[0])]


def _one_sided(pairs: Sequence[FramePair]) -> list[Difference]:
    """Return a difference per frame that only one of the two bundles published."""
    differences = []
    for pair in pairs:
        if pair.a is None or pair.b is None:
            a, b = (None if side is None else f"{len(side)} boxes" for side in (pair.a, pair.b))
            differences.append(
                Difference(pair.key[1], pair.key[0], "frame", a, b, "the frame is in one run only")
            )
    return differences


def _nothing(pair: FramePair, reason: str) -> Difference:
    return Difference(pair.key[1], pair.key[0], "boxes", None, None, reason)


def _counted(differences: Sequence[Difference]) -> str:
    fields: dict[str, int] = {}
    for difference in differences:
        fields[difference.field] = fields.get(difference.field, 0) + 1
    frames = len({(d.camera, d.frame) for d in differences})
    listed = ", ".join(f"{name} {count}" for name, count in sorted(fields.items(), key=lambda i: -i[1]))
    return f"{len(differences)} differences in {frames} frames: {listed}"


def require_same_log(reference: ReplayResult, digest: str, name: str) -> None:
    """Raise RequestError unless the reference is of the log with that digest."""
    if reference.log_digest != digest:
        raise RequestError(
            "the reference is of another log",
            seen=f"{reference.log} {reference.log_digest[:12]}, replayed {name} {digest[:12]}",
            fix="name the reference of this log, or accept a new one in another file with --accept",
        )


def require_same_request(reference: ReplayResult, result: ReplayResult) -> None:
    """Raise RequestError unless both replayed one log under one configuration with the same classes."""
    require_same_log(reference, result.log_digest, result.log)
    if reference.config_digest != result.config_digest:
        raise RequestError(
            "the reference was accepted with another configuration",
            seen=f"{reference.config_digest[:12]}, here {result.config_digest[:12]}",
            fix="use the same --config, --frames and frame policy, or accept a new reference in another file",
        )
    if reference.labels != result.labels:
        here, there = (", ".join(names[:6]) or "none" for names in (result.labels, reference.labels))
        raise RequestError(
            "the classes of bundle and reference differ",
            seen=f"{len(result.labels)}: {here}; reference {len(reference.labels)}: {there}",
            fix="compare bundles with the same classes in the same order",
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _largest(values: Sequence[float]) -> float:
    return float(np.max(values)) if values else 0.0
