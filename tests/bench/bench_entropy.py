"""The entropy search against literal loops: same thresholds, and how much faster.

    python tests/bench/bench_entropy.py [--histograms 1000] [--seed 1] [--published-every 50]

Every histogram is searched by a loop over candidates, vectorised over levels; every 50th also by the loop over
candidates and levels that published implementations run. Both are checked against plain Python in the tests.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avq.builder.calibrate import ranges as thresholds
from avq.builder.calibrate.histogram import Histogram
from tests.builder.calibrate.threshold_reference import literal_entropy, published_kl, random_histograms

NAN = math.nan


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, 1e3 * (time.perf_counter() - begin)


def compare(histogram: Histogram, published: bool) -> tuple[float, ...]:
    """(same, same or tied, fast ms, loop ms, published loop ms)."""
    found, fast_ms = timed(lambda: thresholds.entropy(histogram))
    (expected, divergence), loop_ms = timed(lambda: literal_entropy(histogram))
    published_ms = NAN
    if published:
        _, published_ms = timed(lambda: literal_entropy(histogram, divergence_of=published_kl))
    same = found == expected
    tied = same or divergence[math.ceil(found / histogram.width)] - min(divergence.values()) <= 1e-12
    return same, tied, fast_ms, loop_ms, published_ms


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN


def show(kind: str, rows: Sequence[tuple[float, ...]]) -> None:
    same, tied, fast, loop, published = (list(column) for column in zip(*rows, strict=True))
    fast_ms, loop_ms, published_ms = mean(fast), mean(loop), mean(published)
    ratio = mean([p / f for p, f in zip(published, fast, strict=True)])
    print(
        f"{kind:12}{len(rows):>6}{int(sum(same)):>6}{int(sum(tied)):>6}{fast_ms:>9.2f}"
        f"{loop_ms:>9.1f}{loop_ms / fast_ms:>7.0f}x{published_ms:>11.0f}{ratio:>7.0f}x"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--histograms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--published-every", type=int, default=50)
    options = parser.parse_args()
    for _, histogram in random_histograms(options.seed, 10):
        thresholds.entropy(histogram)  # fills the tables of level edges, as the first tensor of a model does
    rows: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for number, (kind, histogram) in enumerate(random_histograms(options.seed, options.histograms)):
        # 50 is a multiple of the number of kinds: step through them too.
        published = number % options.published_every == (number // options.published_every) % 10
        rows[kind].append(compare(histogram, published))
    print(f"{'kind':12}{'n':>6}{'same':>6}{'tied':>6}{'avq ms':>9}{'loop ms':>9}{'':8}{'published':>11}")
    for kind, found in rows.items():
        show(kind, found)
    everything = [row for found in rows.values() for row in found]
    show("all", everything)
    return 0 if all(row[1] for row in everything) else 1


if __name__ == "__main__":
    sys.exit(main())
