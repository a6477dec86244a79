"""Standard output whose reader may not read: the last line of a service must not keep it from ending."""

from __future__ import annotations

import os
import select
import sys

_PATIENCE_S = 2.0
#: What a pipe takes without waiting when it says that it has room.
_ROOM_BYTES = 4096


def told(text: str) -> bool:
    """Write a line; False when the reader has taken nothing for two seconds. Raises OSError, as print does."""
    sys.stdout.flush()
    output = sys.stdout.fileno()
    ready = select.poll()
    ready.register(output, select.POLLOUT)
    left = memoryview(f"{text}\n".encode())
    while left:
        if not ready.poll(_PATIENCE_S * 1000):
            return False
        left = left[os.write(output, left[:_ROOM_BYTES]) :]
    return True
