"""A process that logs a frame every few milliseconds and says so, until it is killed.

Usage: python -m tests.recording.log_until_killed PATH [KEY=VALUE&...]
Prints: sequence number and monotonic time, after each message was logged.
"""

from __future__ import annotations

import sys
import time

from avq.recording import RecorderSinkType
from tests.recording.recording_kit import LABELS, published


def main(uri: str) -> None:
    sink = RecorderSinkType().open(uri, labels=LABELS)
    frames = [published(seq)[1] for seq in range(8)]
    for seq in range(10**6):
        message, _ = published(seq)
        sink.write(message, frames[seq % 8])
        print(seq, time.monotonic_ns(), flush=True)
        time.sleep(0.004)


if __name__ == "__main__":
    main(sys.argv[1])
