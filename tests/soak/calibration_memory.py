"""Peak memory of calibration must not grow with the number of pictures.

    python tests/soak/calibration_memory.py [--counts 50 500 5000]

A small net on generated pictures; every count runs in a fresh process. Exit code 1 when the largest set needs
more than 1.05 times the memory of the smallest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avq.builder.calibrate.sharding import run_calibrate
from avq.builder.pictures.dataset import open_set
from avq.process import peak_rss_mb
from tests.builder.calibrate.calibration_case import run_on, write_pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_calibrate(run_on(open_set(options.child).items), options.child.with_suffix(".avqcal"))
        print(peak_rss_mb())
        return 0
    peaks = []
    print(f"{'pictures':>9}{'peak MB':>9}")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as root:
            pictures = write_pictures(Path(root) / "pictures", count)
            command = [sys.executable, str(Path(__file__).resolve()), "--child", str(pictures)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
        print(f"{count:>9}{peaks[-1]:>9.1f}", flush=True)
    return 1 if peaks[-1] > 1.05 * peaks[0] else 0


if __name__ == "__main__":
    sys.exit(main())
