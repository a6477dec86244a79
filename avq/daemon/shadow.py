"""A candidate bundle on the frames of the serving one: how far they agree, before it is promoted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

from avq.bundle import OpenBundle
from avq.clock import SystemClock
from avq.compare import assign
from avq.daemon.metrics import Histogram
from avq.daemon.side_task import Finding, ShadowState
from avq.daemon.step import Parts, step
from avq.types import Detections, Frame

#: Frames between two reports.
REPORT_EVERY = 50
_MIN_IOU = 0.5
#: Boxes below this score appear and vanish with any rounding.
_MIN_SCORE = 0.3


class Shadow:
    """Runs the candidate and matches its boxes with the published ones, one to one.

    Agreement is the share of boxes with a score of at least 0.3, on either side, that match a box of the same class
    on the other side, of any score. Another serving bundle starts new counts.

    Args:
        parts: the candidate, open and warm.
        close: frees the candidate.
        report_every: frames between two "shadow_report" events.
    """

    def __init__(
        self, parts: Parts, close: Callable[[], None] = lambda: None, *, report_every: int = REPORT_EVERY
    ) -> None:
        self._parts = parts
        self._close = close
        self._report_every = report_every
        self._clock = SystemClock()
        self._begin("")

    def _begin(self, serving: str) -> None:
        self._serving = serving
        self._counts: Counter[str] = Counter()
        self._shift = 0.0
        self._service = Histogram()

    def examine(self, frame: Frame, detections: Detections, bundle: str) -> list[Finding]:
        if bundle != self._serving:
            self._begin(bundle)
        candidate, times = step(frame, self._parts, self._clock)
        self._service.record(times.preprocess_ns + times.infer_ns + times.decode_ns)
        self._counts["frames"] += 1
        self._match(detections, candidate)
        if self._counts["frames"] % self._report_every:
            return []
        report = {"kind": "shadow_report", **self.state(), "reason": self._summary()}
        return [cast("Finding", report)]

    def _match(self, serving: Detections, candidate: Detections) -> None:
        pairs = assign(serving, candidate, _MIN_IOU)
        matched = [(i, j) for i, j in pairs if serving.class_ids[i] == candidate.class_ids[j]]
        in_serving, in_candidate = {i for i, _ in matched}, {j for _, j in matched}
        counted_serving = {i for i in range(len(serving)) if serving.scores[i] >= _MIN_SCORE}
        counted_candidate = {j for j in range(len(candidate)) if candidate.scores[j] >= _MIN_SCORE}
        self._counts["boxes"] += len(counted_serving) + len(counted_candidate)
        self._counts["lost"] += len(counted_serving - in_serving)
        self._counts["added"] += len(counted_candidate - in_candidate)
        self._counts["matched"] += len(matched)
        self._shift += sum(float(candidate.scores[j]) - float(serving.scores[i]) for i, j in matched)

    def on_bundle(self, bundle: OpenBundle) -> None:
        """Every published message names its bundle, so nothing is needed here."""

    def state(self) -> ShadowState:
        """Counts since this bundle serves; ``agreement`` and ``confidence_shift`` are None before the first box."""
        boxes, matched = self._counts["boxes"], self._counts["matched"]
        unmatched = self._counts["lost"] + self._counts["added"]
        return {
            "candidate": self._parts.bundle_digest,
            "serving": self._serving,
            "frames": self._counts["frames"],
            "boxes": boxes,
            "agreement": round(1.0 - unmatched / boxes, 4) if boxes else None,
            "lost": self._counts["lost"],
            "added": self._counts["added"],
            "confidence_shift": round(self._shift / matched, 4) if matched else None,
            "service_p50_ms": self._service.summary_ms()["p50_ms"],
        }

    def _summary(self) -> str:
        state = self.state()
        if state["agreement"] is None:
            return f"no box on {state['frames']} frames: nothing to compare"
        return (
            f"{state['agreement']:.1%} of {state['boxes']} boxes agree over {state['frames']} frames: "
            f"{state['lost']} lost, {state['added']} added"
        )

    def close(self) -> None:
        self._close()
