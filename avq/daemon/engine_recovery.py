"""An engine that fails while it serves: one failed frame costs that frame, repeated failures replace the engine.

The engine is opened anew, then the configured fallbacks are tried, then the run ends. What may hang (closing the
broken engine, opening another one) runs on threads that are abandoned after their time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from avq.daemon.modes import ActiveModes, warm_modes
from avq.errors import AvqError, MachineError

#: Failed frames in a row, or among the last frames, that are answered by another engine.
IN_A_ROW = 3
AMONG_LAST = 20
_LAST = 100
#: Frames without a failure after which the next failure begins at the first answer again.
HEALTHY_FRAMES = 1000
#: A broken engine may take so long to close, and another one to open.
CLOSE_S = 2.0
OPEN_S = 60.0
_SAME_CAUSE_NS = 900_000_000_000
_log = logging.getLogger("avq.daemon")

Step = tuple[str, Callable[[], ActiveModes]]


def close_within(close: Callable[[], object], seconds: float, name: str) -> bool:
    """Call ``close`` on a thread of its own; False, with a warning, when it does not return in time or raises."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            close()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=f"close {name}", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _log.warning("%s does not close within %g s; it is abandoned", name, seconds)
    elif errors:
        _log.warning("%s failed to close: %s", name, cause_of(errors[0]))
    return not (thread.is_alive() or errors)


def cause_of(error: BaseException) -> str:
    """One line for an error: its type and text."""
    if isinstance(error, AvqError):
        return " ".join((f"{error.what} ({error.seen})" if error.seen else error.what).split())
    return " ".join(f"{type(error).__name__}: {error}".split())


class FailureCounter:
    """Counts failed frames; pure."""

    def __init__(self) -> None:
        self.healthy = 0  # frames since the last failure
        self._row = 0
        self._last: deque[bool] = deque(maxlen=_LAST)
        self._reported_ns: dict[str, int] = {}

    def on_success(self) -> None:
        self.healthy, self._row = self.healthy + 1, 0
        self._last.append(False)

    def on_failure(self) -> bool:
        """Count a failed frame; return whether failures repeat."""
        self.healthy, self._row = 0, self._row + 1
        self._last.append(True)
        return self._row >= IN_A_ROW or sum(self._last) >= AMONG_LAST

    def is_new(self, cause: str, now_ns: int) -> bool:
        """Whether a cause was not reported within the last 15 minutes."""
        last_ns = self._reported_ns.get(cause)
        if last_ns is not None and now_ns - last_ns < _SAME_CAUSE_NS:
            return False
        if len(self._reported_ns) >= _LAST:  # messages that hold numbers never repeat
            self._reported_ns.clear()
        self._reported_ns[cause] = now_ns
        return True

    def restart(self) -> None:
        """Forget the failures of an engine that was replaced."""
        self._row = 0
        self._last.clear()


@dataclass
class _Attempt:
    name: str
    began_s: float
    result: SimpleQueue[ActiveModes | BaseException]


class EngineRecovery:
    """Tries the answers to repeated failures, one at a time, on threads of their own.

    Args:
        steps: (name, function that opens modes), in order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = list(steps)
        self._next = 0
        self._attempt: _Attempt | None = None

    @property
    def busy(self) -> bool:
        """Whether another engine is being opened."""
        return self._attempt is not None

    def healthy(self) -> None:
        """Begin at the first answer again."""
        self._next = 0

    def begin(self, broken: ActiveModes | None) -> bool:
        """Close the broken modes and open those of the next step; False when there is none.

        Args:
            broken: closed first, as memory may not hold both; None when they were closed before.
        """
        if self._next >= len(self._steps):
            return False
        name, opener = self._steps[self._next]
        self._next += 1
        attempt = self._attempt = _Attempt(name, time.monotonic(), SimpleQueue())

        def run() -> None:
            try:
                if broken is not None:
                    close_within(broken.close, CLOSE_S, "the failed engine")
                served = opener()
                attempt.result.put(_warm(served))
            except BaseException as error:
                attempt.result.put(error)

        threading.Thread(target=run, name="engine recovery", daemon=True).start()
        return True

    def poll(self, wait_s: float) -> tuple[str, ActiveModes] | AvqError | None:
        """Wait for the step that was begun.

        Returns:
            Its name and the open modes, the error it ended with, or None while it continues.
        """
        attempt = self._attempt
        assert attempt is not None
        try:
            result = attempt.result.get(timeout=wait_s)
        except Empty:
            if time.monotonic() - attempt.began_s < OPEN_S:
                return None
            result = MachineError(f"it did not open within {OPEN_S:g} s")
        self._attempt = None
        if isinstance(result, ActiveModes):
            return attempt.name, result
        return MachineError(f"{attempt.name} failed", seen=cause_of(result))


def _warm(served: ActiveModes) -> ActiveModes:
    try:
        return ActiveModes(warm_modes(served.modes), served.close, served.bundle, served.reopen)
    except BaseException:
        served.close()
        raise
