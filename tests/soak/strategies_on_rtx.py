"""Every strategy on every replica, each file really parsed and built: ``python tests/soak/strategies_on_rtx.py``.

Prints one line per pair, with the strategies' own defaults and for three cards. The suite builds every pair too, with
short searches and for one card (``tests/replicas/test_on_rtx_*.py``). Exit code 1 when one is refused.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from avq.errors import AvqError  # noqa: E402
from avq.scenes.dataset import write_labelled_set  # noqa: E402
from tests.replicas.rtx import ARCHITECTURES, MODELS, STRATEGIES, build_for_rtx  # noqa: E402


def main() -> int:
    refused = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_labelled_set(folder / "scenes", seeds=range(8_000_000, 8_000_012))
        for model in MODELS:
            for strategy in STRATEGIES:
                started_s = time.monotonic()
                try:
                    outcome = build_for_rtx(
                        model, strategy, folder / "scenes", folder / f"{model}-{strategy}", ARCHITECTURES
                    )
                except AvqError as error:
                    refused += 1
                    print(f"{model:10} {strategy:8} REFUSED {error.what}: {error.seen}", flush=True)
                    continue
                if not outcome.compiled.rows:
                    refused += 1
                    print(f"{model:10} {strategy:8} REFUSED {'; '.join(outcome.verdict.reasons)}", flush=True)
                    continue
                sizes = ", ".join(
                    f"{row['architecture']} {row['engine kB']} kB" for row in outcome.compiled.rows
                )
                took_s = time.monotonic() - started_s
                print(
                    f"{model:10} {strategy:8} INT8 {outcome.int8_mac_share:.0%}  {sizes}  {took_s:.0f} s",
                    flush=True,
                )
    print(f"{len(MODELS) * len(STRATEGIES) - refused} built, {refused} refused")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
