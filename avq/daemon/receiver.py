"""One thread that hears every capture process: frames into the inbox, ends and deaths into the books.

It never waits for one camera: a process that has to end is killed and looked at again, and one that the kernel does
not let go is left behind.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Mapping
from functools import partial

import msgspec

from avq.daemon.capture import CaptureProcess, error_of
from avq.daemon.capture_protocol import Captured, CaptureSettings, Ended, Failed, Lost, Message, Opened
from avq.daemon.events import EventQueue
from avq.daemon.inbox import Arrival, SharedInbox
from avq.daemon.metrics import Failure
from avq.daemon.supervisor import Action, RestartPolicy, Supervisor
from avq.errors import AvqError, MachineError
from avq.types import Frame

_LOOK_AGAIN_S = 0.2
_LOOK_CLOSELY_S = 0.005  # while a process ends
_GRACE_S = 1.0
_END_GRACE_NS = 300_000_000


class _Camera:
    """One camera over all its capture processes."""

    def __init__(self, settings: CaptureSettings, policy: RestartPolicy) -> None:
        self.name = settings.camera
        self.settings = settings
        self.frames = 0
        self.end: Ended | Failed | None = None
        self.asked = False
        self._first_seq = settings.first_seq
        self._announced = 0  # frames of this process
        self._lost: Mapping[str, int] = {}
        self.ends_by_ns: int | None = None  # its pipe is closed; it must be gone by then
        self.process: CaptureProcess | None = CaptureProcess(settings)
        self.supervisor = Supervisor(
            policy,
            open_timeout_ns=settings.open_timeout_ms * 1_000_000,
            read_timeout_ns=settings.read_timeout_ms * 1_000_000,
            now_ns=time.monotonic_ns(),
        )

    def start(self) -> CaptureProcess:
        """A fresh process that counts on."""
        self.end, self.ends_by_ns = None, None
        self._first_seq += self._announced + sum(self._lost.values())
        self._announced, self._lost = 0, {}
        self.process = CaptureProcess(msgspec.structs.replace(self.settings, first_seq=self._first_seq))
        return self.process

    def count(self, lost: Mapping[str, int], *, announced: int = 0) -> None:
        """Keep what this process told, so that the next one's frames are numbered on from there."""
        self.frames += announced
        self._announced += announced
        self._lost = lost

    @property
    def may_come_back(self) -> bool:
        """A camera or stream, as far as can be known: a file that broke stays broken."""
        uri = self.settings.uri
        return self.supervisor.live or ("://" in uri and not uri.startswith("file://"))


class Receiver:
    """Starts a capture process per camera, replaces it when it stalls or dies, and listens until each has ended.

    ``failures`` grows as cameras end and may be read at any time.

    Args:
        settings: of the cameras.
        inbox: where frames go; each camera is open in it until it has ended for good.
        policies: camera -> how it is restarted, RestartPolicy() where absent.
    """

    def __init__(
        self,
        settings: list[CaptureSettings],
        inbox: SharedInbox,
        policies: Mapping[str, RestartPolicy] | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self._hopeless: AvqError | None = None
        self.events = EventQueue()  # of cameras: kind, t_ns, camera, cause, reason
        self._inbox = inbox
        self._selector = selectors.DefaultSelector()
        self._kill_at_ns: int | None = None
        self._cameras: list[_Camera] = []
        self._terminating: list[CaptureProcess] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, partial(os.eventfd_read, self._wake_fd))
        try:
            for one in settings:
                inbox.open_camera(one.camera, every=False)
                camera = _Camera(one, (policies or {}).get(one.camera, RestartPolicy()))
                self._cameras.append(camera)
                self._listen_to(camera)
        except BaseException:
            self._close_all()
            os.close(self._wake_fd)
            raise
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> dict[str, int]:
        """Process id per camera that is being captured now."""
        return {one.name: process.pid for one in list(self._cameras) if (process := one.process) is not None}

    @property
    def restarts(self) -> dict[str, int]:
        """How often the capture process of each camera was replaced."""
        return {camera.name: camera.supervisor.restarts for camera in list(self._cameras)}

    @property
    def accounted(self) -> bool:
        """Of every camera it is known why it delivers nothing, or it is not due yet."""
        now_ns = time.monotonic_ns()
        return all(camera.supervisor.accounted(now_ns) for camera in list(self._cameras))

    def _listen_to(self, camera: _Camera) -> None:
        process = camera.process
        assert process is not None
        self._selector.register(process.announce_fd, selectors.EVENT_READ, partial(self._on_message, camera))
        self._selector.register(process.noise_fd, selectors.EVENT_READ, partial(self._drain_stderr, process))

    def _run(self) -> None:
        while self._cameras:
            for key, _ in self._selector.select(self._wait_s()):
                if key.fd in self._selector.get_map():  # an end in this very round closes two of them
                    key.data()
            for camera in list(self._cameras):
                self._advance(camera)
            self._terminating = [process for process in self._terminating if not process.exited]
        self._close_all()

    def _wait_s(self) -> float:
        if any(camera.ends_by_ns is not None for camera in self._cameras):
            return _LOOK_CLOSELY_S
        due_ns = min(camera.supervisor.due_ns for camera in self._cameras)
        return min(max(0.0, (due_ns - time.monotonic_ns()) / 1e9), _LOOK_AGAIN_S)

    def _advance(self, camera: _Camera) -> None:
        """What one camera needs by now; waits for nothing."""
        now_ns = time.monotonic_ns()
        if self._kill_at_ns is not None:
            self._hasten(camera, now_ns)
        else:
            process = camera.process
            held = process is not None and process.held
            for order in camera.supervisor.actions(
                now_ns, held=held, busy=lambda: process is not None and process.busy
            ):
                self._apply(camera, order, now_ns)
        if camera.ends_by_ns is not None and camera.process is not None:
            self._bury(camera, camera.process, now_ns)

    def _apply(self, camera: _Camera, order: Action, now_ns: int) -> None:
        if order.kind == "start":
            self._replace(camera, now_ns)
        elif order.kind == "kill":
            self._kill(camera, now_ns)
        else:
            self._tell(camera, order)

    def _replace(self, camera: _Camera, now_ns: int) -> None:
        try:
            camera.start()
        except OSError as error:  # no process or descriptor to be had: that may pass, too
            camera.supervisor.on_exit("no process", str(error), now_ns, again=True)
        else:
            self._listen_to(camera)

    def _kill(self, camera: _Camera, now_ns: int) -> None:
        if camera.process is not None and camera.ends_by_ns is None:
            camera.process.kill()
            camera.ends_by_ns = now_ns + _END_GRACE_NS

    def _on_message(self, camera: _Camera) -> None:
        process = camera.process
        assert process is not None
        try:
            messages = process.hear()
            for message in messages or ():
                self._take(camera, process, message)
        except Exception as error:  # one camera's nonsense must not deafen the others
            process.kill()
            camera.end = _nonsense(camera.name, error)
            messages = iter(())
        if messages is None:
            self._selector.unregister(process.announce_fd)
            camera.ends_by_ns = time.monotonic_ns() + _END_GRACE_NS
            if camera.end is None:
                self._broke(camera, "died", "the capture process ended")

    def _broke(self, camera: _Camera, cause: str, reason: str) -> None:
        state = camera.supervisor.state
        if camera.may_come_back and self._kill_at_ns is None and state != "ending":
            camera.supervisor.on_failure(cause, reason, time.monotonic_ns())

    def _take(self, camera: _Camera, process: CaptureProcess, message: Message) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(message, Captured):
            self._arrive(camera, process, message)
            camera.supervisor.on_frame(now_ns)
        elif isinstance(message, Lost):
            camera.count(message.lost)
            self._inbox.lost_so_far(camera.name, message.lost)
            camera.supervisor.on_frame(now_ns)
        elif isinstance(message, Opened):
            camera.supervisor.on_open(live=message.live, fps=message.fps, now_ns=now_ns)
            self._inbox.open_camera(camera.name, every=message.every)
        else:
            camera.end = message
            if isinstance(message, Failed) and message.again:
                self._broke(camera, "failed", _one_line(error_of(message)))

    def _arrive(self, camera: _Camera, process: CaptureProcess, message: Captured) -> None:
        camera.count(message.lost, announced=1)
        pixels = process.pixels(message.slot, message.width_px, message.height_px)
        frame = Frame(camera.name, message.seq, message.t_capture_ns, pixels)
        release = partial(process.give_back, message.slot)
        self._inbox.offer(Arrival(frame, camera.supervisor.live, release), message.lost)

    def _drain_stderr(self, process: CaptureProcess) -> None:
        if not process.swallow_noise():
            self._selector.unregister(process.noise_fd)

    def _bury(self, camera: _Camera, process: CaptureProcess, now_ns: int) -> None:
        """Once the process is gone, or will not go: free what it had, and see what becomes of the camera."""
        heard_out = process.announce_fd not in self._selector.get_map()
        assert camera.ends_by_ns is not None
        if not (process.exited and heard_out) and now_ns < camera.ends_by_ns:
            return
        if not process.exited:
            process.kill()
            self._terminating.append(process)
        for fd in (process.announce_fd, process.noise_fd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        process.release()
        camera.process, camera.ends_by_ns = None, None
        self._count_lost(camera)
        self._settle(camera, process, now_ns)

    def _count_lost(self, camera: _Camera) -> None:
        """Drops the process told of last; what it had not told when it was killed was never captured."""
        if camera.end is not None and camera.end.lost:
            camera.count(camera.end.lost)
            self._inbox.lost_so_far(camera.name, camera.end.lost)

    def _settle(self, camera: _Camera, process: CaptureProcess, now_ns: int) -> None:
        """The camera waits for its next process, or has ended."""
        supervisor, end = camera.supervisor, camera.end
        error = self._error(camera, process)
        if error is not None and self._kill_at_ns is None:
            cause = "died" if end is None else "failed"
            passing = end is None or (isinstance(end, Failed) and end.again)
            again = passing and camera.may_come_back
            supervisor.on_exit(cause, _one_line(error), now_ns, again=again)
            if supervisor.state == "waiting":
                self._give_up_where_hopeless(error)
                return
            self.failures.append(Failure(camera.name, error, camera.frames))
            self._put(camera.name, "camera_failed", str(error), supervisor.cause or cause)
        if isinstance(end, Ended) and end.remark:
            self._put(camera.name, "camera_remark", end.remark, "")
        self._cameras.remove(camera)
        self._inbox.close_camera(camera.name)

    def _give_up_where_hopeless(self, error: AvqError) -> None:
        """No camera ever opened within its bound: there is nothing to serve."""
        if all(one.supervisor.exhausted and not one.supervisor.ever_opened for one in self._cameras):
            names = ", ".join(camera.name for camera in self._cameras)
            self._hopeless = MachineError(
                f"no camera could be opened: {names}", seen=_one_line(error), fix=error.fix
            )
            self._inbox.wake()

    def _error(self, camera: _Camera, process: CaptureProcess) -> AvqError | None:
        if isinstance(camera.end, Failed):
            return error_of(camera.end)
        return None if camera.end is not None else process.death()

    def _tell(self, camera: _Camera, order: Action) -> None:
        self._put(camera.name, order.kind, order.reason, order.cause)

    def _put(self, camera: str, kind: str, reason: str, cause: str) -> None:
        event = {
            "kind": kind,
            "t_ns": time.monotonic_ns(),
            "camera": camera,
            "cause": cause,
            "reason": reason,
        }
        self.events.put(event)
        self._inbox.wake()

    @property
    def refused(self) -> AvqError | None:
        """Why there is nothing to serve: a request was wrong from the start, or no camera ever opened."""
        wrong = next((failure.error for failure in list(self.failures) if failure.frames == 0), None)
        return wrong or self._hopeless

    def _hasten(self, camera: _Camera, now_ns: int) -> None:
        """On the way out: ask at once, kill after the grace."""
        assert self._kill_at_ns is not None
        if camera.process is None:
            self._cameras.remove(camera)
            self._inbox.close_camera(camera.name)
        elif now_ns >= self._kill_at_ns:
            self._kill(camera, now_ns)
        elif not camera.asked:
            camera.asked = True
            camera.process.ask_to_stop()

    def stop(self) -> None:
        """Ask every capture process to end, kill those that do not within a second, leave none behind."""
        self._kill_at_ns = time.monotonic_ns() + int(_GRACE_S * 1e9)
        os.eventfd_write(self._wake_fd, 1)
        self._thread.join()
        os.close(self._wake_fd)

    def _close_all(self) -> None:
        for camera in self._cameras:
            if camera.process is not None:
                camera.process.close()
        deadline_ns = time.monotonic_ns() + int(_GRACE_S * 1e9)
        while not all(process.exited for process in self._terminating) and time.monotonic_ns() < deadline_ns:
            time.sleep(_LOOK_CLOSELY_S)
        self._selector.close()


def _one_line(error: AvqError) -> str:
    return f"{error.what} ({error.seen})" if error.seen else error.what


def _nonsense(camera: str, error: Exception) -> Failed:
    return Failed(
        "MachineError",
        f"the capture process of camera '{camera}' sent what cannot be understood",
        repr(error),
        "its memory is damaged: suspect the decoder or the source's plugin",
        {},
        again=True,
    )
