"""How threads that can wait let the frame path go first."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

#: Not more: a thread that holds the interpreter's lock must get a processor to give it back.
_NICER = 5
_NICEST = 19


def step_back() -> None:
    """Give the calling thread a lower priority than it has; where the system refuses, it keeps its own."""
    thread = threading.get_native_id()
    with suppress(OSError):
        now = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(now + _NICER, _NICEST))
