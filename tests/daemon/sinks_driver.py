"""A daemon process for tests: numbered frames with many boxes, an alert per frame, a page, and the sinks named.

Prints the page's address first and the summary last. Its service manager is the environment's.

Usage: python -m tests.daemon.sinks_driver URI SINK ...
"""

from __future__ import annotations

import json
import sys
import threading
import time

from avq.alerts import AlertWatch, Rule
from avq.cli.app import exit_despite
from avq.daemon import RunOptions, serve_bundle, sink_types, source_providers
from avq.daemon.systemd import SystemdNotifier
from avq.sinks import AlertSink, open_sink
from avq.types import LatencyBudget
from avq.web.server import open_site
from tests.daemon.daemon_kit import LABELS, null_parts
from tests.daemon.numbered_source import NumberedSource

BOXES = 40


def main(uri: str, *sinks: str) -> int:
    rule = Rule("car", classes=frozenset({"car"}), min_score=0.3, cooldown_ns=1_000_000)
    watch = AlertWatch([rule], LABELS, offset_ns=lambda: time.time_ns() - time.monotonic_ns())
    with open_site("127.0.0.1", 0, None) as (live_state, address):
        print(address, flush=True)
        summary = serve_bundle(
            null_parts(boxes=BOXES),
            sources={"front": uri},
            sinks=[AlertSink(watch), *(open_sink(sink, sink_types(), labels=LABELS) for sink in sinks)],
            budget=LatencyBudget(1_000_000_000),
            options=RunOptions(
                providers=source_providers([NumberedSource()]),
                observer=live_state,
                notifier=SystemdNotifier.from_environment(),
                drain_s=4.0,
            ),
        )
    print(json.dumps(summary.as_json()), flush=True)
    return summary.exit_code


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    exit_despite({thread for thread in threading.enumerate() if thread.daemon}, code)
    sys.exit(code)
