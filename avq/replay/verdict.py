"""Two replays of one log, judged: the same, or what differs and how much it matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Verdict:
    """The answer of a comparison.

    Attributes:
        tier, why: which comparison applied.
        identical: detections and decisions agree bit for bit.
        differences: what counts as a difference in this tier; none means yes.
        reasons: for a no, in words.
        pairs: every frame with its boxes matched, for reports.
        metric: the table per class and size; for every tier, since people ask.
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

    def changes(self) -> dict[str, Any]:
        """What moved at all, counted over all frames, whatever is tolerated."""
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
    """Compare a replay with its reference in the tier they allow, or the one asked for.

    In the metric tier every change beyond the tolerances is a difference; with ``by_loss`` only what a bundle
    changes that loses more than the limits, and frames and alerts it costs.

    Raises:
        RequestError: they are of different logs or configurations, or name different classes.
        DataError: there is nothing to compare.
    """
    require_same_request(reference, result)
    pairs = pair_frames(reference.detections, result.detections)
    if not any(pair.a is not None and pair.b is not None for pair in pairs):
        raise DataError(
            "nothing was compared: the two replays have no frame in common",
            seen=f"{reference.frames} and {result.frames} frames, first {pairs[0].key}",
            fix="replay both with --every-frame",
        )
    metric = measure(pairs, result.labels, allowed)
    settled, why = tier_for(reference, result, allowed)
    if tier is not None and tier != settled:
        settled, why = tier, f"as asked for, instead of {settled}"
    if settled == "metric" and by_loss:
        why = "another bundle: judged by what it loses"
    timed = "measured" not in (reference.timing, result.timing)
    if settled == "metric":
        found, reasons = _metric(reference, result, pairs, metric, allowed, timed=timed, by_loss=by_loss)
    else:
        found = box_differences(pairs, settled, allowed)
        found += decision_differences(reference, result) if timed else []
        reasons = []
    identical = reference.sha256 == result.sha256 and (
        not timed or reference.decisions_sha256 == result.decisions_sha256
    )
    found.sort(key=lambda d: (d.camera, d.frame))
    told = (*reasons, *([_counted(found)] if found else []))
    return Verdict(settled, why, identical, tuple(found), told, pairs, metric, allowed)


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
    """Another bundle takes other times: frames it was too slow for and new alerts count, ages do not."""
    events = new_events(reference, result) if timed else []
    if not by_loss:
        found = box_differences(pairs, "metric", allowed) + events
        return found or _proves_nothing(pairs, metric), list(metric.reasons)
    found = _one_sided(pairs) + events
    if metric.reasons:
        found += metric_differences(pairs, allowed) or [_nothing(pairs[0], metric.reasons[0])]
    return found, list(metric.reasons)


def _proves_nothing(pairs: Sequence[FramePair], metric: Metric) -> list[Difference]:
    """Two bundles that see nothing at all agree, and that says nothing about either."""
    seen = any(len(side) for pair in pairs for side in (pair.a, pair.b) if side is not None)
    return [] if seen else [_nothing(pairs[0], metric.reasons[0])]


def _one_sided(pairs: Sequence[FramePair]) -> list[Difference]:
    """Frames that only one of the two bundles was fast enough for."""
    found = []
    for pair in pairs:
        if pair.a is None or pair.b is None:
            a, b = (None if side is None else f"{len(side)} boxes" for side in (pair.a, pair.b))
            found.append(Difference(pair.key[1], pair.key[0], "frame", a, b, "the frame is in one run only"))
    return found


def _nothing(pair: FramePair, reason: str) -> Difference:
    return Difference(pair.key[1], pair.key[0], "boxes", None, None, reason)


def _counted(found: Sequence[Difference]) -> str:
    fields: dict[str, int] = {}
    for difference in found:
        fields[difference.field] = fields.get(difference.field, 0) + 1
    frames = len({(d.camera, d.frame) for d in found})
    listed = ", ".join(f"{name} {count}" for name, count in sorted(fields.items(), key=lambda i: -i[1]))
    return f"{len(found)} differences in {frames} frames: {listed}"


def require_same_log(reference: ReplayResult, digest: str, name: str) -> None:
    """Raise RequestError unless the reference is of the log with that digest."""
    if reference.log_digest != digest:
        raise RequestError(
            "the reference is of another log",
            seen=f"{reference.log} {reference.log_digest[:12]}, replayed {name} {digest[:12]}",
            fix="name the reference of this log; a new one goes to a file of its own with --accept",
        )


def require_same_request(reference: ReplayResult, result: ReplayResult) -> None:
    """Raise RequestError unless both replayed one log under one configuration with the same classes."""
    require_same_log(reference, result.log_digest, result.log)
    if reference.config_digest != result.config_digest:
        raise RequestError(
            "the reference was made under another configuration",
            seen=f"{reference.config_digest[:12]}, here {result.config_digest[:12]}",
            fix="use the same --config, --frames and frame policy; a new reference goes to a file of its own",
        )
    if reference.labels != result.labels:
        here, there = (", ".join(names[:6]) or "none" for names in (result.labels, reference.labels))
        raise RequestError(
            "the bundle names other classes than the reference",
            seen=f"{len(result.labels)}: {here}; reference {len(reference.labels)}: {there}",
            fix="compare bundles of models with the same classes in the same order",
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _largest(values: Sequence[float]) -> float:
    return float(np.max(values)) if values else 0.0
