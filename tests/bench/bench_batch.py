"""Sixteen drives replayed by one process and by two Ray workers: the same bits, and how much sooner.

    python tests/bench/bench_batch.py [--bundle B] [--drives 16] [--frames 90] [--workers 2]

Starting the cluster and loading the libraries in its workers is not counted; it is told. A third pass kills a worker
in the middle. Without --bundle the built-in detector is built first.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from avq.builder import build
from avq.demo import builtin_recipe
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.recording import RecorderSink
from avq.replay.batch import BatchResult, replay_many
from avq.scenes import Drive
from avq.scenes.dataset import write_labelled_set
from avq.types import Detections, Frame, Published

_OPTIONS: dict[str, Any] = {
    "config": None, "timing": None, "policy": "every", "frames": None, "baseline": None, "accept": False, "runs": 1,
    "tier": None,
}  # fmt: skip


def record(path: Path, seed: int, frames: int) -> str:
    """A drive as a flight record with JPEG pictures."""
    drive, sink = (
        Drive(seed=seed, weather="day", width_px=640, height_px=360, fps=30),
        RecorderSink(path, labels=()),
    )
    for seq in range(frames):
        t_ns = seq * 33_333_333
        seen = Detections(
            np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), "front", seq, t_ns
        )
        sink.write(
            Published(seen, 1, 0, False, "normal", ""), Frame("front", seq, t_ns, drive.frame(seq).pixels)
        )
    sink.close()
    return str(path)


def replayed(logs: list[str], bundle: Path, pool: WorkerPool) -> tuple[BatchResult, float]:
    began_s = time.monotonic()
    merged = replay_many(
        logs=logs, bundles=[bundle], pool=pool, report_folder=None, report=Silent(), **_OPTIONS
    )
    return merged, time.monotonic() - began_s


def bits(merged: BatchResult) -> list[tuple[str, str, int]]:
    assert not merged.failed, merged.failed
    return [(row["sha256"], row["decisions_sha256"], row["frames"]) for row in merged.rows]


def kill_one(after_s: float) -> None:
    time.sleep(after_s)
    for process in psutil.Process().children(recursive=True):
        if process.cmdline()[:1] == ["ray::_call"]:
            os.kill(process.pid, signal.SIGKILL)
            print(f"killed worker {process.pid}")
            return


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--drives", type=int, default=16)
    parser.add_argument("--frames", type=int, default=90)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        bundle = asked.bundle
        if bundle is None:
            write_labelled_set(root / "pictures", seeds=range(9_400_000, 9_400_032))
            bundle = root / "builtin.avq"
            build(builtin_recipe(root / "pictures", bundle), PluginHost(), Silent())
        logs = [
            record(root / f"drive_{n:02d}.mcap", 9_500_000 + n, asked.frames) for n in range(asked.drives)
        ]
        replayed(logs[:1], bundle, WorkerPool())
        serial, serial_s = replayed(logs, bundle, WorkerPool())
        with WorkerPool("ray", asked.workers, "local") as pool:
            began_s = time.monotonic()
            replayed(logs[: 2 * pool.worker_count], bundle, pool)
            start_s = time.monotonic() - began_s
            spread, spread_s = replayed(logs, bundle, pool)
            accident = threading.Thread(target=kill_one, args=(spread_s / 2,))
            accident.start()
            hurt, hurt_s = replayed(logs, bundle, pool)
            accident.join()
    frames = sum(row["frames"] for row in serial.rows)
    engine_s = sum(row["engine_seconds"] for row in serial.rows)
    print(f"{asked.drives} drives, {frames} frames; engine {engine_s:.1f} s of them")
    print("| who | seconds | frames/s | same bits |\n|---|---|---|---|")
    print(f"| one process | {serial_s:.2f} | {frames / serial_s:.0f} | |")
    for name, merged, seconds in (("Ray", spread, spread_s), ("Ray, a worker killed", hurt, hurt_s)):
        same = "yes" if bits(merged) == bits(serial) else "NO"
        print(f"| {name}, {asked.workers} workers | {seconds:.2f} | {frames / seconds:.0f} | {same} |")
    print(f"speed-up {serial_s / spread_s:.2f}; cluster and first use of its workers took {start_s:.1f} s")


if __name__ == "__main__":
    main()
