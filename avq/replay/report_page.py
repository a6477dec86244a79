"""HTML page of a replay: verdict, changes by class, size and time, and the frames with the largest changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from avq.render import (
    Bar,
    Fact,
    Headline,
    Html,
    PairRow,
    Tone,
    bar_chart,
    columns,
    draw_detections,
    folded,
    key_figures,
    page,
    pair_bars,
    picture_pair,
    section,
    strip,
    table,
)
from avq.replay.differences import FramePair
from avq.replay.log import FrameKey
from avq.replay.metric import ALL, Cell
from avq.replay.outcome import Outcome, difference_row, metric_rows
from avq.replay.result import ReplayResult
from avq.replay.stage_times import STAGES, table_of
from avq.replay.verdict import Verdict
from avq.types import U8, Detections

#: Smallest crop / picture, per side: shows where in the picture the crop is.
_MIN_SHARE = 0.45
_MARGIN = 0.35
#: Small crops are enlarged: a box of ten pixels must be visible on a phone.
_SHOWN_PX = 620
_MOVED_PX = 2.0
_RESCORED = 0.05


def side_by_side(pair: FramePair, pixels: U8, labels: Sequence[str]) -> Html:
    """Draw one frame with the boxes of reference (left) and replay (right), cropped to the changes.

    Args:
        pair: a frame in both runs.
        pixels: (H, W, 3) uint8 BGR.
        labels: class names by id.
    """
    a, b = pair.a, pair.b
    assert a is not None and b is not None
    x0, y0, x1, y1 = _window(pair, a, b, pixels)
    scale = max(1.0, _SHOWN_PX / (x1 - x0))
    sides = []
    for seen in (a, b):
        crop = np.ascontiguousarray(pixels[y0:y1, x0:x1])
        if scale > 1.0:
            crop = np.asarray(
                cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8
            )
        sides.append(draw_detections(crop, _moved(seen, x0, y0, scale), labels))
    camera, frame = pair.key
    return picture_pair(
        sides[0], sides[1], (f"{camera} {frame}: reference, {len(a)} boxes", _caption(pair, b))
    )


def _caption(pair: FramePair, b: Detections) -> str:
    flips = sum(match.class_flip for match in pair.matches)
    changes = [
        f"{count} {kind}"
        for count, kind in (
            (len(pair.vanished), "vanished"),
            (len(pair.appeared), "appeared"),
            (flips, "class flips"),
        )
        if count
    ]
    return f"this replay, {len(b)} boxes" + (
        f": {', '.join(changes)}" if changes else ": scores or positions changed"
    )


def _window(pair: FramePair, a: Detections, b: Detections, pixels: U8) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 in pixels of the part of the picture with every changed box, with a margin."""
    height, width = pixels.shape[:2]
    boxes = [a.boxes_xyxy_px[i] for i in pair.vanished] + [b.boxes_xyxy_px[j] for j in pair.appeared]
    for match in pair.matches:
        if match.class_flip or match.corner_px > _MOVED_PX or abs(match.score_shift) > _RESCORED:
            boxes += [a.boxes_xyxy_px[match.a], b.boxes_xyxy_px[match.b]]
    finite = [box for box in boxes if np.all(np.isfinite(box))]
    if not finite:
        return 0, 0, width, height
    corners = np.array(finite, np.float64)
    low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    whole = np.array([width, height], np.float64)
    reach = np.maximum((high - low) * (1.0 + _MARGIN), whole * _MIN_SHARE)
    reach = np.minimum(np.maximum(reach, whole * (reach / whole).max()), whole)  # keep the picture's shape
    start = np.clip((low + high - reach) / 2.0, 0.0, whole - reach)
    x0, y0 = (int(v) for v in np.floor(start))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(start + reach), whole))
    return x0, y0, x1, y1


def _moved(seen: Detections, x0: int, y0: int, scale: float) -> Detections:
    """Return the boxes in pixels of the crop; those outside are left out."""
    boxes = (seen.boxes_xyxy_px - np.array([x0, y0, x0, y0], np.float32)) * np.float32(scale)
    keep = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    return Detections(boxes[keep], seen.scores[keep], seen.class_ids[keep], seen.camera, seen.seq)


#: Largest number of rows of the table of differences.
_SHOWN = 200
_BARS = 12
_STRETCHES = 10


def shown_pairs(outcome: Outcome, count: int) -> list[FramePair]:
    """Return the frames with the largest changes; neighbouring frames, which are alike, only when others run out."""
    ranked = [pair for pair in outcome.worst_pairs() if pair.a is not None and pair.b is not None]
    apart: list[FramePair] = []
    for pair in ranked:
        if all(pair.key[0] != other.key[0] or abs(pair.key[1] - other.key[1]) > 2 for other in apart):
            apart.append(pair)
    chosen = [*apart, *(pair for pair in ranked if pair not in apart)][:count]
    return sorted(chosen, key=lambda pair: -pair.badness)


def replay_page(outcome: Outcome, shown: Sequence[FramePair], pictures: Mapping[FrameKey, U8]) -> str:
    """Return the page as one self-contained HTML file."""
    result, verdict = outcome.result, outcome.verdict
    sections = [section("In short", key_figures(_facts(outcome)))]
    if verdict is not None:
        sections += _what_changed(verdict)
        sections.append(_timeline(result, verdict))
        sections += _worst(outcome, shown, pictures)
    sections.append(_stages(outcome))
    sections.append(_decisions(outcome))
    if outcome.differences:
        rows = [difference_row(difference, result.labels) for difference in outcome.differences[:_SHOWN]]
        more = len(outcome.differences) - len(rows)
        lead = f"The first {len(rows)}; {more} more in --json." if more > 0 else ""
        sections.append(section("Every difference", folded(f"{len(rows)} rows", table(rows)), lead=lead))
    footer = (
        f"log {result.log_digest[:16]}, bundle {result.bundle_digest[:16]}, detections {result.sha256[:16]}, "
        f"decisions {result.decisions_sha256[:16]}; {result.machine}"
    )
    return page(f"avq replay {result.log}", _headline(outcome), sections, footer=footer)


def _headline(outcome: Outcome) -> Headline:
    tone: Tone = "plain" if outcome.verdict is None else "bad" if outcome.differences else "good"
    why = (outcome.verdict.why,) if outcome.verdict is not None else ()
    against = (f"against {outcome.reference_name}",) if outcome.reference_name else ()
    return Headline(outcome.headline, tone, (*against, *why, *outcome.reasons, outcome.result.timing_remark))


def _facts(outcome: Outcome) -> list[Fact]:
    result, verdict = outcome.result, outcome.verdict
    dropped = sum(result.account.dropped.values())
    causes = ", ".join(f"{cause} {count}" for cause, count in result.account.dropped.items())
    facts = [Fact("frames", str(result.frames), note=f"{dropped} not served: {causes}" if dropped else "")]
    if verdict is not None:
        total = verdict.metric.total
        bad: Tone = "bad" if outcome.differences else "good"
        facts += [
            Fact("differences", str(len(outcome.differences)), note=f"{verdict.tier} comparison", tone=bad),
            Fact(
                "boxes lost",
                str(total.lost),
                note=f"of {total.boxes} with score >= 0.5",
                tone=_tone(total.lost),
            ),
            Fact("boxes new", str(total.appeared), note=f"of {total.found}", tone=_tone(total.appeared)),
            Fact("confidence", f"{total.confidence_shift:+.4f}", note="mean shift, boxes found again"),
        ]
    return facts


def _tone(count: int) -> Tone:
    return "bad" if count else "good"


def _what_changed(verdict: Verdict) -> list[Html]:
    cells = verdict.metric.cells
    by_class = {name: c for (name, size), c in cells.items() if size == ALL and name != ALL and c.boxes}
    by_size = {size: c for (name, size), c in cells.items() if name == ALL and size != ALL and c.boxes}
    charts = [
        bar_chart(_bars(by_class), unit="%", title="lost, by class"),
        bar_chart(_bars(by_size), unit="%", title="lost, by size"),
    ]
    lead = "Firm boxes (score >= 0.5) not found again: same class, IoU >= 0.5, at least half the score."
    rows = metric_rows(verdict.metric.rows())
    moved = [
        {"what": name.replace("_", " "), "all boxes": value} for name, value in verdict.changes().items()
    ]
    half = len(moved) // 2
    return [
        section(
            "What changed",
            columns(*charts),
            table(rows),
            columns(table(moved[:half]), table(moved[half:])),
            lead=lead,
        ),
        section(
            "Changes over the drive", table(_stretches(verdict)), lead="By camera and stretch, in order."
        ),
    ]


def _bars(cells: Mapping[str, Cell]) -> list[Bar]:
    ranked = sorted(cells.items(), key=lambda item: -item[1].lost / item[1].boxes)[:_BARS]
    return [
        Bar(name, 100.0 * cell.lost / cell.boxes, _tone(cell.lost), note=f"{cell.lost} of {cell.boxes}")
        for name, cell in ranked
    ]


def _stretches(verdict: Verdict) -> list[dict[str, object]]:
    """Return the changes of each camera in up to ten equal stretches of the drive."""
    rows: list[dict[str, object]] = []
    for camera in dict.fromkeys(pair.key[0] for pair in verdict.pairs):
        pairs = [pair for pair in verdict.pairs if pair.key[0] == camera]
        size = max(1, -(-len(pairs) // _STRETCHES))
        differing = {(d.camera, d.frame) for d in verdict.differences}
        for start in range(0, len(pairs), size):
            part = pairs[start : start + size]
            rows.append(
                {
                    "camera": camera,
                    "frames": f"{part[0].key[1]} to {part[-1].key[1]}",
                    "differing frames": sum(pair.key in differing for pair in part),
                    "vanished": sum(len(pair.vanished) for pair in part),
                    "appeared": sum(len(pair.appeared) for pair in part),
                    "class flips": sum(match.class_flip for pair in part for match in pair.matches),
                    "change": f"{sum(min(pair.badness, 10.0) for pair in part) / len(part):.2f}",
                }
            )
    return rows


def _timeline(result: ReplayResult, verdict: Verdict) -> Html:
    change = [min(pair.badness, 10.0) for pair in verdict.pairs]
    ages = [answer.published.age_ns / 1e6 for answer in result.answers]
    return section(
        "Timeline",
        strip(change, unit="", title="change per frame: scores of lost and new boxes, class flips, shifts"),
        strip(ages, title="age of every published frame on the replay clock"),
    )


def _worst(outcome: Outcome, shown: Sequence[FramePair], pictures: Mapping[FrameKey, U8]) -> list[Html]:
    labels = outcome.result.labels
    blocks = [side_by_side(pair, pictures[pair.key], labels) for pair in shown if pair.key in pictures]
    if not blocks:
        return []
    lead = "Reference left, this replay right, cropped to the changes; largest first."
    return [section("Worst frames", *blocks, lead=lead)]


def _stages(outcome: Outcome) -> Html:
    if outcome.paired is None:
        rows = table_of(outcome.result).rows()
        return section(
            "Stage times",
            table(rows),
            lead="Measured on this machine, without the queue; no limits are set.",
        )
    before, after = outcome.paired.reference, outcome.paired.new
    bars = [
        PairRow(
            stage, float(before.ms[stage].mean()), float(after.ms[stage].mean()), note=_ratio(outcome, stage)
        )
        for stage in STAGES
    ]
    lead = (
        f"Both bundles on the same {len(after.keys)} pictures in turns; ratio new / reference, 95 % interval."
    )
    return section(
        "Stage times",
        pair_bars(bars, ("reference", "this bundle"), unit="ms", title="mean"),
        table(outcome.paired.rows()),
        lead=lead,
    )


def _ratio(outcome: Outcome, stage: str) -> str:
    if outcome.paired is None:
        return ""
    median, low, high = outcome.paired.ratios[stage]
    return f"{median:.2f}x [{low:.2f}, {high:.2f}]"


def _decisions(outcome: Outcome) -> Html:
    rows = [_decided("this replay", outcome.result)]
    if outcome.reference is not None:
        rows.insert(0, _decided("reference", outcome.reference))
    events = [{key: str(value) for key, value in event.items()} for event in outcome.result.events[:20]]
    blocks = [table(rows)] + ([folded(f"{len(events)} events", table(events))] if events else [])
    return section("Drops and modes", *blocks, lead="Decisions of the loop on the replay clock.")


def _decided(name: str, result: ReplayResult) -> dict[str, object]:
    dropped = ", ".join(f"{cause} {count}" for cause, count in result.account.dropped.items())
    return {
        "run": name,
        "stage times": result.timing,
        "captured": result.account.captured,
        "published": result.frames,
        "dropped": dropped or "none",
        "late": result.misses,
        "modes": ", ".join(result.modes),
        "events": len(result.events),
    }
