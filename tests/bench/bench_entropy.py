"""The entropy search against a literal loop: same thresholds, and how much faster.

    python tests/bench/bench_entropy.py [--histograms 1000] [--seed 1]

Prints one row per kind of distribution. The loop's time is that of a numpy loop over candidates; the pure
Python form in tests/build/threshold_reference.py, which it is checked against, is slower still.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avq.build import thresholds
from tests.build.threshold_reference import literal_entropy, random_histograms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histograms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows: dict[str, list[tuple[bool, bool, float, float]]] = defaultdict(list)
    for kind, histogram in random_histograms(options.seed, options.histograms):
        begin = time.perf_counter()
        found = thresholds.entropy(histogram)
        between = time.perf_counter()
        expected, divergence = literal_entropy(histogram)
        end = time.perf_counter()
        equal = found == expected
        kept = math.ceil(found / histogram.width)
        tied = equal or abs(divergence[kept] - min(divergence.values())) <= 1e-12
        rows[kind].append((equal, tied, between - begin, end - between))
    print(f"{'kind':12} {'histograms':>10} {'same':>6} {'same or tied':>13} {'fast ms':>9} {'loop ms':>9} {'ratio':>7}")
    everything = [row for kind in rows.values() for row in kind]
    for kind, found_rows in [*rows.items(), ("all", everything)]:
        same, tied_rows, fast, loop = (list(column) for column in zip(*found_rows, strict=True))
        fast_ms, loop_ms = 1e3 * sum(fast) / len(fast), 1e3 * sum(loop) / len(loop)
        counts = f"{len(fast):>10} {sum(same):>6} {sum(tied_rows):>13}"
        print(f"{kind:12} {counts} {fast_ms:>9.2f} {loop_ms:>9.1f} {loop_ms / fast_ms:>6.0f}x")
    return 0 if all(row[1] for row in everything) else 1


if __name__ == "__main__":
    sys.exit(main())
