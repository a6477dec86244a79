"""A daemon process for tests: an alert per few frames of a scene, sent to the sinks named.

Usage: python -m tests.sinks.alert_daemon COOLDOWN_MS FRAMES SINK ...   (frames 0: until stopped)
"""

from __future__ import annotations

import json
import sys
import time

from avq.alerts import AlertWatch, Rule
from avq.daemon import RunOptions, serve_bundle, sink_types
from avq.sinks import AlertSink, open_sink
from avq.types import LatencyBudget
from tests.daemon.daemon_kit import LABELS, null_parts


def main(cooldown_ms: str, frames: str, *sinks: str) -> int:
    rule = Rule("car", classes=frozenset({"car"}), min_score=0.3, cooldown_ns=int(cooldown_ms) * 1_000_000)
    offset_ns = time.time_ns() - time.monotonic_ns()
    summary = serve_bundle(
        null_parts(),
        sources={"front": "scene://drive?seed=1&fps=30&size=160x96"},
        sinks=[
            AlertSink(AlertWatch([rule], LABELS, offset_ns=lambda: offset_ns)),
            *(open_sink(sink, sink_types(), labels=LABELS) for sink in sinks),
        ],
        budget=LatencyBudget(1_000_000_000),
        options=RunOptions(frames=int(frames) or None),
    )
    print(json.dumps(summary.as_json()), flush=True)
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
