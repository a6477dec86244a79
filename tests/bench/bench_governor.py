"""The governor's ladder against an oracle that knows the future, on a thousand generated traces.

python -m tests.bench.bench_governor [--traces 1000]
"""

from __future__ import annotations

import argparse

from tests.daemon.governor_sim import judged


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=int, default=1000)
    total = judged(range(parser.parse_args().traces))
    fitting = total.fitting_cost - total.fitting_oracle_cost
    print(f"published frames                     {total.frames}, {total.dwells} dwells")
    print(f"cost, ladder / oracle                {total.cost:.0f} / {total.oracle_cost:.0f}"
          f" = {total.cost / total.oracle_cost:.3f}")  # fmt: skip
    print(f"cost above the oracle per 100 frames {100 * (total.cost - total.oracle_cost) / total.frames:.2f}")
    print(f"  where the cheapest rung holds      {100 * fitting / total.fitting_frames:.2f}")
    print(f"slowest detection, frames            {total.slowest_detection_frames}")
    print(f"dwells with opposite switches        {total.opposite_switches}")
    print(f"in budget where the cheapest holds   {100 * total.in_budget_share:.2f} %")


if __name__ == "__main__":
    main()
