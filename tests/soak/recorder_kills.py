"""SIGKILL a recording process at 200 random moments: python -m tests.soak.recorder_kills [COUNT]"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.recording.kills import kill_once


def main(count: int = 200) -> int:
    rng = random.Random(200)
    with tempfile.TemporaryDirectory() as folder:
        kills = [kill_once(Path(folder), rng) for _ in range(count)]
    logged, due = sum(kill.logged for kill in kills), sum(kill.due for kill in kills)
    missing, unlike = sum(kill.missing for kill in kills), sum(kill.unlike for kill in kills)
    print(f"{count} kills, {logged} messages logged, {due} of them 100 ms before the kill or earlier")
    print(f"not recovered of these: {missing}; readers that disagree: {unlike}")
    return int(missing > 0 or unlike > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
