"""A daemon process for tests: serves one source, one line per frame on standard output, the summary last.

Usage: python -m tests.daemon.serve_driver URI BUSY_MS [SINK ...]
"""

from __future__ import annotations

import json
import sys

from avq.daemon import RunOptions, serve_bundle, sink_types, source_providers
from avq.sinks import open_sink
from avq.types import LatencyBudget
from tests.daemon.daemon_kit import LABELS, null_parts
from tests.daemon.strange_sources import StrangeSource


def main(uri: str, busy_ms: str, *sinks: str) -> int:
    summary = serve_bundle(
        null_parts(float(busy_ms)),
        sources={"front": uri},
        sinks=[open_sink(sink, sink_types(), labels=LABELS) for sink in ("-", *sinks)],
        budget=LatencyBudget(50_000_000),
        options=RunOptions(
            providers=source_providers([StrangeSource()]),
            open_timeout_ms=2000,
        ),
    )
    print(json.dumps(summary.as_json()), flush=True)
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
