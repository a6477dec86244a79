"""A candidate that sees what the serving engine sees: how far they agree, before anyone promotes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from avq.bundle import OpenBundle
from avq.clock import SystemClock
from avq.compare import assign
from avq.daemon.metrics import Histogram
from avq.daemon.step import Parts, step
from avq.types import Detections, Frame

#: Frames between two reports.
REPORT_EVERY = 50
_MIN_IOU = 0.5
#: Boxes below come and go with any rounding.
_FIRM_SCORE = 0.3


class Shadow:
    """Runs the candidate and matches its boxes with those that were published, one to one.

    Agreement is the share of firm boxes of either side that found a partner of the same class on the other, of any
    score. A new serving bundle begins a new count.

    Args:
        parts: the candidate, open and warm.
        close: frees it.
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

    def look(self, frame: Frame, served: Detections, bundle: str) -> list[dict[str, Any]]:
        if bundle != self._serving:
            self._begin(bundle)
        found, times = step(frame, self._parts, self._clock)
        self._service.record(times.preprocess_ns + times.infer_ns + times.decode_ns)
        self._counts["frames"] += 1
        self._match(served, found)
        if self._counts["frames"] % self._report_every:
            return []
        return [{"kind": "shadow_report", **self.state(), "reason": self._sentence()}]

    def _match(self, served: Detections, found: Detections) -> None:
        partners = assign(served, found, _MIN_IOU)
        same = [(i, j) for i, j in partners if served.class_ids[i] == found.class_ids[j]]
        ours, theirs = {i for i, _ in same}, {j for _, j in same}
        firm_served = {i for i in range(len(served)) if served.scores[i] >= _FIRM_SCORE}
        firm_found = {j for j in range(len(found)) if found.scores[j] >= _FIRM_SCORE}
        self._counts["boxes"] += len(firm_served) + len(firm_found)
        self._counts["lost"] += len(firm_served - ours)
        self._counts["added"] += len(firm_found - theirs)
        self._counts["matched"] += len(same)
        self._shift += sum(float(found.scores[j]) - float(served.scores[i]) for i, j in same)

    def serves(self, bundle: OpenBundle) -> None:
        """Told by every message, too."""

    def state(self) -> Mapping[str, Any]:
        """``agreement`` and ``confidence_shift`` are null before a box was seen."""
        boxes, matched = self._counts["boxes"], self._counts["matched"]
        alone = self._counts["lost"] + self._counts["added"]
        return {
            "candidate": self._parts.bundle_digest,
            "serving": self._serving,
            "frames": self._counts["frames"],
            "boxes": boxes,
            "agreement": round(1.0 - alone / boxes, 4) if boxes else None,
            "lost": self._counts["lost"],
            "added": self._counts["added"],
            "confidence_shift": round(self._shift / matched, 4) if matched else None,
            "service_p50_ms": self._service.summary_ms()["p50_ms"],
        }

    def _sentence(self) -> str:
        state = self.state()
        if state["agreement"] is None:
            return f"no box on {state['frames']} frames: nothing to compare"
        return (
            f"{state['agreement']:.1%} of {state['boxes']} boxes agree over {state['frames']} frames: "
            f"{state['lost']} lost, {state['added']} added"
        )

    def close(self) -> None:
        self._close()
