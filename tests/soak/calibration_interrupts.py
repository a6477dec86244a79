"""Kill calibration at random moments, again and again, and cut it at random: the file never changes.

    python tests/soak/calibration_interrupts.py [--rounds 20] [--pictures 60] [--seed 1]

Each round kills a fresh process with SIGKILL after a random time, resumes, kills again, until one ends; then it
cuts the set into a random number of shards and merges them in random order. Exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.sharding import run_calibrate
from avq.builder.pictures.dataset import open_set
from tests.builder.calibrate.calibration_case import run_on, write_pictures


def child(pictures: Path, output: Path) -> None:
    run_calibrate(run_on(open_set(pictures).items, checkpoint_every=2, checkpoint_seconds=0.0), output)


def killed_until_done(pictures: Path, output: Path, rng: random.Random) -> int:
    """How many times the run was killed before it ended."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(pictures), str(output)]
    kills = 0
    while not output.exists():
        process = subprocess.Popen(command)
        # At least long enough to get further than the last time, now and then.
        deadline = time.monotonic() + rng.uniform(0.3, 1.0 + 0.2 * kills)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    return kills


def merged(pictures: Path, folder: Path, shards: int, rng: random.Random) -> bytes:
    items = open_set(pictures).items
    paths = [folder / f"{index}.avqcal" for index in range(shards)]
    for index, path in enumerate(paths):
        run_calibrate(run_on(items, part=(index, shards)), path)
    rng.shuffle(paths)
    avqcal.write(folder / "merged.avqcal", avqcal.merge_paths(paths))
    return (folder / "merged.avqcal").read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return 0
    rng, different = random.Random(options.seed), 0
    print(f"{'round':>6}{'kills':>7}{'resumed':>9}{'shards':>8}{'merged':>8}")
    with tempfile.TemporaryDirectory() as root:
        pictures = write_pictures(Path(root) / "pictures", options.pictures)
        run_calibrate(run_on(open_set(pictures).items), Path(root) / "whole.avqcal")
        whole = (Path(root) / "whole.avqcal").read_bytes()
        for number in range(options.rounds):
            folder = Path(root) / str(number)
            folder.mkdir()
            kills = killed_until_done(pictures, folder / "out.avqcal", rng)
            resumed = (folder / "out.avqcal").read_bytes() == whole
            left = [path.name for path in folder.iterdir()]
            shards = rng.randint(1, 8)
            same = merged(pictures, folder, shards, rng) == whole
            different += (not resumed) + (not same) + (left != ["out.avqcal"])
            print(f"{number:>6}{kills:>7}{resumed!s:>9}{shards:>8}{same!s:>8}", flush=True)
    print(f"{different} differences")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
