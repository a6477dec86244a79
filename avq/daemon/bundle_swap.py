"""Bundle swaps in a running service: prepared on a thread of their own, installed between two frames.

A new bundle is on probation for its first frames. If its engine raises on one of them, the modes before it are
installed again and serve that frame; they are closed when the probation ends.
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

from avq.daemon.engine_recovery import CLOSE_S, close_within
from avq.daemon.events import EventQueue
from avq.daemon.modes import ActiveModes, Mode, require_classes, warm_modes
from avq.daemon.pipeline import Pipeline
from avq.daemon.systemd import SystemdNotifier
from avq.errors import AvqError, MachineError, RefusedError
from avq.process import lower_thread_priority
from avq.types.frame import SwapEvent, SwappedBundles

#: Frames a new bundle serves before the one it replaced is closed.
PROBATION_FRAMES = 30
#: A caller gets its answer after this time even when too few frames came to end the probation.
_ANSWER_S = 10.0
_JOIN_S = 10.0
_POLL_S = 0.05


@dataclass
class _Request:
    """``path``: the bundle that replaces the best one; None: reload the configuration."""

    path: Path | None
    answer: SimpleQueue[Mapping[str, Any] | AvqError] = field(default_factory=SimpleQueue)


@dataclass(frozen=True)
class _Ready:
    request: _Request
    served: ActiveModes


class BundleSwapper:
    """Holds the serving modes and replaces them on request.

    ``install`` and ``roll_back`` run on the loop's thread, ``swap`` on any thread, ``request_reload`` in a signal
    handler.

    Args:
        serving: modes at the start; closed by ``close()`` with all later ones.
        prepare: opens, verifies and compares a ladder for a bundle, or for None the ladder of the configuration as
            it is now. Raises AvqError and then leaves nothing open.
        notifier: of the service manager; notified of reloads.
        reloads: SIGHUP reloads the configuration; else it ends the run, as when a terminal is closed.
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
        self._probation: tuple[_Ready, ActiveModes, int] | None = None  # new modes, modes before, frames left
        self._finished = threading.Event()
        self._finished.set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="swapper", daemon=True)
        self._thread.start()

    def started(self, modes: Sequence[Mode]) -> None:
        """Replace the modes of the start by the same modes with their measured costs."""
        self.serving = replace(self.serving, modes=tuple(modes))

    def swap(self, path: Path) -> Mapping[str, Any]:
        """Serve the bundle at ``path`` instead of the best one.

        Returns:
            Keys swapped, settled, bundle (digest) and modes.

        Raises:
            AvqError: it was refused or rolled back; the bundle before continues to serve.
        """
        request = _Request(path)
        self._requests.put(request)
        if self._closing:  # the worker may have ended
            request.answer.put(_run_ending())
        answer = request.answer.get()
        if isinstance(answer, AvqError):
            raise answer
        return answer

    def request_reload(self) -> None:
        """Reload the configuration, on SIGHUP."""
        self._requests.put(_Request(None))

    def install(self, pipeline: Pipeline) -> ActiveModes | None:
        """Install prepared modes between two frames.

        Returns:
            The new modes; None when none are ready.
        """
        if self._probation is not None or self._ready.empty():
            return None
        ready = self._ready.get()
        before, self.serving = self.serving, ready.served
        self._probation = ready, before, PROBATION_FRAMES
        pipeline.install(ready.served.modes)
        pipeline.record_event(
            _event(
                "bundle_swapped",
                f"{_named(ready.served)} replaced {_named(before)}",
                {"from": before.bundle_digest, "bundle": ready.served.bundle_digest},
            )
        )
        return ready.served

    def on_published(self) -> None:
        """Count one published frame of the probation."""
        if self._probation is None:
            return
        ready, before, left = self._probation
        if left > 1:
            self._probation = ready, before, left - 1
            return
        self._end_probation(ready, before, settled=True)

    def roll_back(self, pipeline: Pipeline, error: BaseException) -> ActiveModes | None:
        """Install the modes before a new bundle again, after it failed on a frame.

        Returns:
            The modes that serve now; None when no bundle is on probation.
        """
        if self._probation is None:
            return None
        ready, before, _ = self._probation
        self._probation = None
        failed, self.serving = self.serving, before
        pipeline.install(before.modes)
        reason = f"{_named(failed)} failed on one of its first frames: {type(error).__name__}: {error}"
        pipeline.record_event(
            _event(
                "swap_rolled_back",
                " ".join(reason.split()),
                {"from": failed.bundle_digest, "bundle": before.bundle_digest},
            )
        )
        self._requests.put(failed)
        ready.request.answer.put(
            MachineError(
                "the new bundle was rolled back",
                seen=reason,
                fix=f"{_named(before)} continues to serve; check the new bundle with avq eval and avq bench",
            )
        )
        self._finished.set()
        return before

    def take_serving(self) -> ActiveModes:
        """Give the serving modes away to a caller that closes them."""
        serving = self.serving
        self.serving = replace(serving, close=lambda: None)
        return serving

    def adopt(self, served: ActiveModes) -> None:
        """Hold modes that were opened elsewhere, in the place of those that were taken."""
        self.serving = served

    def _end_probation(self, ready: _Ready, before: ActiveModes, *, settled: bool) -> None:
        self._probation = None
        self._requests.put(before)
        self._answer(ready, settled=settled)
        self._finished.set()

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
                with suppress(Exception):  # it may have been rolled back because it is broken
                    item.close()
            elif self._closing:
                item.answer.put(_run_ending())
            else:
                self._work(item)

    def _work(self, request: _Request) -> None:
        if request.path is None:
            self._notifier.reloading()
        try:
            served = self._open(request.path)
        except Exception as error:
            refused = error if isinstance(error, AvqError) else _preparation_failed(error)
            self.events.put(_refused(refused, request.path))
            request.answer.put(refused)
        else:
            self._hand_over(_Ready(request, served))
        if request.path is None:
            self._notifier.ready("serving")

    def _open(self, path: Path | None) -> ActiveModes:
        served = self._prepare(path)
        try:
            if _same_modes(served, self.serving):
                raise RefusedError(  # noqa: TRY301 - it closes what was prepared
                    "the bundle already serves",
                    seen=_named(served),
                    fix="name another bundle",
                )
            name = "the new bundle" if path is None else f"the bundle {path}"
            require_classes(served.modes[0].parts, self.serving.modes[0].parts.labels, name)
            return replace(served, modes=warm_modes(served.modes))
        except BaseException:
            served.close()
            raise

    def _hand_over(self, ready: _Ready) -> None:
        """Offer prepared modes to the loop and wait for the end of their probation: one swap at a time."""
        self._finished.clear()
        self._ready.put(ready)
        deadline_s = time.monotonic() + _ANSWER_S
        answered = False
        while not self._finished.wait(_POLL_S) and not self._closing:
            if time.monotonic() > deadline_s and not answered:
                self._answer(ready, settled=False)
                answered = True
        ready.request.answer.put(_run_ending())  # read only if the run ended in between

    def close(self) -> None:
        """Close every open bundle, after the loop has ended."""
        self._closing = True
        self._requests.put(None)
        self._thread.join(_JOIN_S)
        while not self._ready.empty():
            close_within(self._ready.get().served.close, CLOSE_S, "a bundle that was not installed")
        if self._probation is not None:
            close_within(self._probation[1].close, CLOSE_S, "the bundle before")
        close_within(self.serving.close, CLOSE_S, "the serving bundle")


def _same_modes(a: ActiveModes, b: ActiveModes) -> bool:
    def modes(served: ActiveModes) -> list[tuple[str, str, int]]:
        return [(mode.name, mode.parts.bundle_digest, mode.stride) for mode in served.modes]

    return modes(a) == modes(b)


def _named(served: ActiveModes) -> str:
    names = ", ".join(dict.fromkeys(mode.parts.bundle_digest[:12] for mode in served.modes))
    return f"bundle {names}"


def _event(kind: str, reason: str, bundles: SwappedBundles) -> SwapEvent:
    return {"kind": kind, "t_ns": time.monotonic_ns(), **bundles, "reason": reason}


def _refused(error: AvqError, path: Path | None) -> SwapEvent:
    reason = f"{error.what} ({error.seen})" if error.seen else error.what
    return _event("swap_refused", " ".join(reason.split()), {"path": str(path) if path else ""})


def _run_ending() -> AvqError:
    return MachineError(
        "the bundle was not swapped", seen="the run is ending", fix="start the next run with the new bundle"
    )


def _preparation_failed(error: Exception) -> AvqError:
    return MachineError(
        "the new bundle could not be prepared",
        seen=f"{type(error).__name__}: {error}",
        fix="check it with avq inspect and avq eval",
    )
