"""Other bundles into a running service: prepared on a thread of their own, installed between two frames.

What is new serves on probation: where its engine breaks on one of its first frames, the modes before it come back
and serve that very frame. Only then are they closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from avq.daemon.events import EventQueue
from avq.daemon.modes import ActiveModes, Mode, require_classes, warmed
from avq.daemon.pipeline import Pipeline
from avq.daemon.systemd import SystemdNotifier
from avq.errors import AvqError, MachineError, RefusedError
from avq.process import lower_thread_priority

#: Frames a new bundle serves before the one it replaced is closed.
PROBATION_FRAMES = 30
#: A caller is answered after so long even when too few frames came to end the probation.
_ANSWER_S = 10.0
_END_S = 10.0
_LOOK_S = 0.05


@dataclass
class _Request:
    """``path``: the bundle that replaces the best one; None: read the configuration again."""

    path: Path | None
    answer: SimpleQueue[Mapping[str, Any] | AvqError] = field(default_factory=SimpleQueue)


@dataclass(frozen=True)
class _Ready:
    request: _Request
    served: ActiveModes


class BundleSwapper:
    """Holds what serves, and replaces it on request.

    ``install`` and ``roll_back`` are called on the loop's thread, ``swap`` on any, ``signalled`` in a signal handler.

    Args:
        serving: what the run begins with; closed by ``close()`` with all that came after.
        prepare: opens, verifies and compares another ladder: for a bundle, or (None) as the configuration now says.
            Raises AvqError; then nothing is left open.
        notifier: told when the configuration is read again.
        reloads: SIGHUP means reload; else it ends the run, as where a terminal is closed.
    """

    def __init__(
        self,
        serving: ActiveModes,
        prepare: Callable[[Path | None], ActiveModes],
        notifier: SystemdNotifier | None = None,
        *,
        reloads: bool = False,
    ) -> None:
        self.serving = serving
        self.events = EventQueue()
        self.reloads = reloads
        self._prepare = prepare
        self._notifier = notifier or SystemdNotifier()
        self._requests: SimpleQueue[_Request | ActiveModes | None] = SimpleQueue()
        self._ready: SimpleQueue[_Ready] = SimpleQueue()
        self._probation: tuple[_Ready, ActiveModes, int] | None = (
            None  # what is new, what was before, frames left
        )
        self._settled = threading.Event()
        self._settled.set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="swapper", daemon=True)
        self._thread.start()

    def started(self, modes: Sequence[Mode]) -> None:
        """What serves at first, now that it is warm and its costs are known."""
        self.serving = replace(self.serving, modes=tuple(modes))

    def swap(self, path: Path) -> Mapping[str, Any]:
        """Put the bundle at ``path`` in the place of the best one; what came of it.

        Raises AvqError when it was refused or taken back; what served before serves on.
        """
        request = _Request(path)
        self._requests.put(request)
        if self._closing:  # nobody may be left to take it up
            request.answer.put(_ending())
        answer = request.answer.get()
        if isinstance(answer, AvqError):
            raise answer
        return answer

    def request_reload(self) -> None:
        """SIGHUP: read the configuration again."""
        self._requests.put(_Request(None))

    def install(self, pipeline: Pipeline) -> ActiveModes | None:
        """Between two frames: put what is ready in service. Returns it, for those that look at bundles."""
        if self._probation is not None or self._ready.empty():
            return None
        ready = self._ready.get()
        before, self.serving = self.serving, ready.served
        self._probation = ready, before, PROBATION_FRAMES
        pipeline.install(ready.served.modes)
        pipeline.tell(
            _event(
                "bundle_swapped",
                f"{_named(before)} gave way to {_named(ready.served)}",
                {"from": before.bundle_digest, "bundle": ready.served.bundle_digest},
            )
        )
        return ready.served

    def on_published(self) -> None:
        """One frame was published."""
        if self._probation is None:
            return
        ready, before, left = self._probation
        if left > 1:
            self._probation = ready, before, left - 1
            return
        self._end_probation(ready, before, settled=True)

    def roll_back(self, pipeline: Pipeline, error: Exception) -> ActiveModes | None:
        """After a frame broke: the modes before a new bundle, back in service; None when no bundle is new."""
        if self._probation is None:
            return None
        ready, before, _ = self._probation
        self._probation = None
        failed, self.serving = self.serving, before
        pipeline.install(before.modes)
        reason = f"{_named(failed)} broke on one of its first frames: {type(error).__name__}: {error}"
        pipeline.tell(
            _event(
                "swap_rolled_back",
                " ".join(reason.split()),
                {"from": failed.bundle_digest, "bundle": before.bundle_digest},
            )
        )
        self._requests.put(failed)
        ready.request.answer.put(
            MachineError(
                "the new bundle was taken out of service again",
                seen=reason,
                fix=f"{_named(before)} serves on; avq eval and avq bench show what the new one does",
            )
        )
        self._settled.set()
        return before

    def _end_probation(self, ready: _Ready, before: ActiveModes, *, settled: bool) -> None:
        self._probation = None
        self._requests.put(before)
        self._answer(ready, settled=settled)
        self._settled.set()

    def _answer(self, ready: _Ready, *, settled: bool) -> None:
        answer = {
            "swapped": True,
            "settled": settled,
            "bundle": ready.served.bundle_digest,
            "modes": [mode.name for mode in ready.served.modes],
        }
        ready.request.answer.put(answer)

    def _run(self) -> None:
        lower_thread_priority()
        while (item := self._requests.get()) is not None:
            if isinstance(item, ActiveModes):
                with suppress(Exception):  # it may have been taken out because it is broken
                    item.close()
            elif self._closing:
                item.answer.put(_ending())
            else:
                self._work(item)

    def _work(self, request: _Request) -> None:
        if request.path is None:
            self._notifier.reloading()
        try:
            served = self._open(request.path)
        except Exception as error:
            refused = error if isinstance(error, AvqError) else _broken(error)
            self.events.put(_refused(refused, request.path))
            request.answer.put(refused)
        else:
            self._hand_over(_Ready(request, served))
        if request.path is None:
            self._notifier.ready("serving")

    def _open(self, path: Path | None) -> ActiveModes:
        served = self._prepare(path)
        try:
            if _same_work(served, self.serving):
                raise RefusedError(
                    "there is nothing to swap",
                    seen=f"{_named(served)} serves already",
                    fix="name another bundle",
                )
            what = "the new bundle" if path is None else f"the bundle {path}"
            require_classes(served.modes[0].parts, self.serving.modes[0].parts.labels, what)
            return replace(served, modes=warmed(served.modes))
        except BaseException:
            served.close()
            raise

    def _hand_over(self, ready: _Ready) -> None:
        """One at a time: the next is prepared when this one's probation is over, or no frame comes to end it."""
        self._settled.clear()
        self._ready.put(ready)
        deadline_s = time.monotonic() + _ANSWER_S
        answered = False
        while not self._settled.wait(_LOOK_S) and not self._closing:
            if time.monotonic() > deadline_s and not answered:
                self._answer(ready, settled=False)
                answered = True
        ready.request.answer.put(_ending())  # nobody reads it unless the run ended in between

    def close(self) -> None:
        """The loop is over: close every bundle that is open."""
        self._closing = True
        self._requests.put(None)
        self._thread.join(_END_S)
        while not self._ready.empty():
            self._ready.get().served.close()
        if self._probation is not None:
            self._probation[1].close()
        self.serving.close()


def _same_work(a: ActiveModes, b: ActiveModes) -> bool:
    def work(served: ActiveModes) -> list[tuple[str, str, int]]:
        return [(mode.name, mode.parts.bundle_digest, mode.stride) for mode in served.modes]

    return work(a) == work(b)


def _named(served: ActiveModes) -> str:
    names = ", ".join(dict.fromkeys(mode.parts.bundle_digest[:12] for mode in served.modes))
    return f"bundle {names}"


def _event(kind: str, reason: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "t_ns": time.monotonic_ns(), **more, "reason": reason}


def _refused(error: AvqError, path: Path | None) -> dict[str, Any]:
    reason = f"{error.what} ({error.seen})" if error.seen else error.what
    return _event("swap_refused", " ".join(reason.split()), {"path": str(path) if path else ""})


def _ending() -> AvqError:
    return MachineError("nothing was swapped", seen="the run is ending", fix="start it with the new bundle")


def _broken(error: Exception) -> AvqError:
    return MachineError(
        "the new bundle could not be prepared",
        seen=f"{type(error).__name__}: {error}",
        fix="avq inspect and avq eval show what is wrong with it",
    )
