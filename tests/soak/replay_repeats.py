"""One log, one bundle, a hundred replays: idle and under load, on one core and on two, must be the same bits.

    python tests/soak/replay_repeats.py LOG BUNDLE [--runs 100]

Each run is compared with a reference as ``avq replay --baseline`` does: a difference is a false alarm. Exit code 1
when any two runs differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avq.replay import ReplayRequest, replay
from avq.replay.differences import Tolerances
from avq.replay.reference import read_reference, write_reference
from avq.replay.verdict import judge

#: Runs of one process: half of what can differ between runs differs between processes.
_PER_PROCESS = 5
_SPIN = "while True: pass"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("log")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    request = ReplayRequest(asked.log, asked.bundle)
    if asked.child:
        return child(request, asked.child, asked.runs)
    cores = sorted(os.sched_getaffinity(0))[:2]
    phases = [(count, loaded) for loaded in (False, True) for count in range(1, len(cores) + 1)]
    with tempfile.TemporaryDirectory() as made:
        reference = Path(made) / "ref.mcap"
        write_reference(reference, replay(request), Tolerances())
        seen: set[tuple[str, str]] = set()
        alarms = 0
        print(f"{'cores':>5} {'load':>5} {'runs':>5} {'digests':>8} {'alarms':>7} {'frames':>7}")
        for count, loaded in phases:
            rows = list(phase(asked, reference, cores[:count], loaded, -(-asked.runs // len(phases))))
            digests = {(row["sha256"], row["decisions"]) for row in rows}
            seen |= digests
            alarms += sum(row["differences"] > 0 or not row["identical"] for row in rows)
            told = f"{count:>5} {'yes' if loaded else 'no':>5} {len(rows):>5} {len(digests):>8} {alarms:>7}"
            print(f"{told} {rows[0]['frames']:>7}", flush=True)
    print(f"{len(seen)} different result{'' if len(seen) == 1 else 's'}: {min(seen)[0][:16]}")
    return 0 if len(seen) == 1 and alarms == 0 else 1


def phase(
    asked: argparse.Namespace, reference: Path, cores: list[int], loaded: bool, runs: int
) -> Iterator[dict[str, Any]]:
    with burners(cores if loaded else []):
        while runs > 0:
            some = min(_PER_PROCESS, runs)
            command = [sys.executable, __file__, asked.log, str(asked.bundle), "--runs", str(some)]
            done = subprocess.run(
                ["taskset", "-c", ",".join(map(str, cores)), *command, "--child", str(reference)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            yield from map(json.loads, done.stdout.splitlines())
            runs -= some


def child(request: ReplayRequest, reference: Path, runs: int) -> int:
    known = read_reference(reference)
    for _ in range(runs):
        result = replay(request)
        verdict = judge(known.result, result, known.tolerances)
        print(
            json.dumps(
                {
                    "sha256": result.sha256,
                    "decisions": result.decisions_sha256,
                    "differences": len(verdict.differences),
                    "identical": verdict.identical,
                    "frames": result.frames,
                }
            ),
            flush=True,
        )
    return 0


@contextmanager
def burners(cores: list[int]) -> Iterator[None]:
    """One process per core that never sleeps."""
    spinning = [subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", _SPIN]) for core in cores]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
