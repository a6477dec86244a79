"""One thread that reads the messages of all capture processes: frames into the inbox, ends and failures into events.

It never waits for one camera: a process that has to end is killed and polled, and one that the kernel does not end is
abandoned.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Mapping
from functools import partial

import msgspec

from avq.daemon.camera_reports import CameraReports
from avq.daemon.capture import CaptureProcess, error_of
from avq.daemon.capture_protocol import (
    UNREADABLE,
    Captured,
    CaptureSettings,
    Ended,
    Failed,
    Lost,
    Message,
    Opened,
)
from avq.daemon.events import EventQueue
from avq.daemon.inbox import Arrival, SharedInbox
from avq.daemon.metrics import Failure
from avq.daemon.supervisor import Action, RestartPolicy, Supervisor
from avq.errors import AvqError, MachineError
from avq.types import Frame
from avq.types.frame import CameraEvent

_POLL_S = 0.2
_POLL_FAST_S = 0.005  # while a process ends
_GRACE_S = 1.0
_END_GRACE_NS = 300_000_000


class _Camera:
    """One camera over all its capture processes."""

    def __init__(self, settings: CaptureSettings, policy: RestartPolicy) -> None:
        self.name = settings.camera
        self.settings = settings
        self.frames = 0
        self.end: Ended | Failed | None = None
        self.stop_sent = False
        self.unreadable_reported = False
        self.reports = CameraReports()
        self._first_seq = settings.first_seq
        self._announced = 0  # frames of this process
        self._lost: Mapping[str, int] = {}
        self.ends_by_ns: int | None = None  # its pipe is closed; it must have ended by then
        self.process: CaptureProcess | None = CaptureProcess(settings)
        self.supervisor = Supervisor(
            policy,
            open_timeout_ns=settings.open_timeout_ms * 1_000_000,
            read_timeout_ns=settings.read_timeout_ms * 1_000_000,
            now_ns=time.monotonic_ns(),
        )

    def start(self) -> CaptureProcess:
        """Start another process, which continues the numbering."""
        self.end, self.ends_by_ns = None, None
        self._first_seq += self._announced + sum(self._lost.values())
        self._announced, self._lost = 0, {}
        self.process = CaptureProcess(msgspec.structs.replace(self.settings, first_seq=self._first_seq))
        return self.process

    def count(self, lost: Mapping[str, int], *, announced: int = 0) -> None:
        """Keep the counts of this process, so that the next one continues its numbering."""
        self.frames += announced
        self._announced += announced
        self._lost = lost

    @property
    def may_come_back(self) -> bool:
        """Whether a restart may help: for cameras and streams, not for files."""
        uri = self.settings.uri
        return self.supervisor.live or ("://" in uri and not uri.startswith("file://"))


class Receiver:
    """Starts a capture process per camera and replaces it when it stalls or dies, until every camera has ended.

    ``failures`` grows as cameras end and may be read at any time.

    Args:
        settings: of the cameras.
        inbox: where frames go; each camera is open in it until it has ended for good.
        policies: camera -> restart policy, RestartPolicy() where absent.
    """

    def __init__(
        self,
        settings: list[CaptureSettings],
        inbox: SharedInbox,
        policies: Mapping[str, RestartPolicy] | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self._all_dead: AvqError | None = None
        self.events = EventQueue()  # CameraEvent
        self._inbox = inbox
        self._selector = selectors.DefaultSelector()
        self._kill_at_ns: int | None = None
        self._cameras: list[_Camera] = []
        self._terminating: list[CaptureProcess] = []
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, partial(os.eventfd_read, self._wake_fd))
        try:
            for camera_settings in settings:
                name = camera_settings.camera
                inbox.open_camera(name, every=False)
                camera = _Camera(camera_settings, (policies or {}).get(name, RestartPolicy()))
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
        """Process id per camera that is captured now."""
        return {c.name: process.pid for c in list(self._cameras) if (process := c.process) is not None}

    @property
    def conditions(self) -> dict[str, str]:
        """State of each camera for people; cameras that have ended are missing."""
        return {camera.name: camera.supervisor.condition for camera in list(self._cameras)}

    @property
    def restarts(self) -> dict[str, int]:
        """How often the capture process of each camera was replaced."""
        return {camera.name: camera.supervisor.restarts for camera in list(self._cameras)}

    @property
    def silence_explained(self) -> bool:
        """Whether every camera without frames has a known reason, or is not due yet."""
        now_ns = time.monotonic_ns()
        return all(camera.supervisor.silence_explained(now_ns) for camera in list(self._cameras))

    def _listen_to(self, camera: _Camera) -> None:
        process = camera.process
        assert process is not None
        self._selector.register(process.announce_fd, selectors.EVENT_READ, partial(self._on_message, camera))
        self._selector.register(process.stderr_fd, selectors.EVENT_READ, partial(self._drain_stderr, process))

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
            return _POLL_FAST_S
        due_ns = min(camera.supervisor.due_ns for camera in self._cameras)
        return min(max(0.0, (due_ns - time.monotonic_ns()) / 1e9), _POLL_S)

    def _advance(self, camera: _Camera) -> None:
        """Do what one camera needs now, without waiting."""
        now_ns = time.monotonic_ns()
        if self._kill_at_ns is not None:
            self._stop_camera(camera, now_ns)
        else:
            process = camera.process
            held = process is not None and process.held
            actions = camera.supervisor.actions(
                now_ns, held=held, busy=lambda: process is not None and process.busy
            )
            reports = camera.reports
            for action in actions:
                for passed in reports.take(action, now_ns):
                    self._apply(camera, passed, now_ns)
            for report in reports.due(now_ns):
                self._apply(camera, report, now_ns)
        if camera.ends_by_ns is not None and camera.process is not None:
            self._release_ended(camera, camera.process, now_ns)

    def _apply(self, camera: _Camera, action: Action, now_ns: int) -> None:
        if action.kind == "start":
            self._replace(camera, now_ns)
        elif action.kind == "kill":
            self._kill(camera, now_ns)
        else:
            self._report(camera.name, action.kind, action.reason, action.cause, action.counts)

    def _replace(self, camera: _Camera, now_ns: int) -> None:
        try:
            camera.start()
        except OSError as error:  # out of processes or descriptors: this may pass
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
            messages = process.read_messages()
            for message in messages or ():
                self._take(camera, process, message)
        except Exception as error:  # one camera must not stop the others
            process.kill()
            camera.end = _unreadable(camera.name, error)
            messages = iter(())
        if messages is None:
            self._selector.unregister(process.announce_fd)
            camera.ends_by_ns = time.monotonic_ns() + _END_GRACE_NS
            if camera.end is None:
                self._on_failure(camera, "died", "the capture process ended")

    def _on_failure(self, camera: _Camera, cause: str, reason: str) -> None:
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
            self._report_unreadable(camera, message.lost)
        elif isinstance(message, Opened):
            camera.supervisor.on_open(live=message.live, fps=message.fps, now_ns=now_ns)
            self._inbox.open_camera(camera.name, every=message.every)
        else:
            camera.end = message
            if isinstance(message, Failed) and message.again:
                self._on_failure(camera, "failed", _one_line(error_of(message)))

    def _report_unreadable(self, camera: _Camera, lost: Mapping[str, int]) -> None:
        """Report once that a live camera delivers pictures that cannot be decoded; files report it at their end."""
        if camera.supervisor.live and UNREADABLE in lost and not camera.unreadable_reported:
            camera.unreadable_reported = True
            reason = "a picture cannot be decoded; this one and further ones are counted as unreadable"
            self._report(camera.name, "camera_remark", reason, UNREADABLE)

    def _arrive(self, camera: _Camera, process: CaptureProcess, message: Captured) -> None:
        camera.count(message.lost, announced=1)
        pixels = process.pixels(message.slot, message.width_px, message.height_px)
        frame = Frame(camera.name, message.seq, message.t_capture_ns, pixels)
        release = partial(process.give_back, message.slot)
        self._inbox.offer(Arrival(frame, camera.supervisor.live, release), message.lost)

    def _drain_stderr(self, process: CaptureProcess) -> None:
        if not process.drain_stderr():
            self._selector.unregister(process.stderr_fd)

    def _release_ended(self, camera: _Camera, process: CaptureProcess, now_ns: int) -> None:
        """Free the descriptors of a process that has ended or does not end, and decide about its camera."""
        pipe_empty = process.announce_fd not in self._selector.get_map()
        assert camera.ends_by_ns is not None
        if not (process.exited and pipe_empty) and now_ns < camera.ends_by_ns:
            return
        if not process.exited:
            process.kill()
            self._terminating.append(process)
        for fd in (process.announce_fd, process.stderr_fd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        process.release()
        camera.process, camera.ends_by_ns = None, None
        self._count_lost(camera)
        self._settle(camera, process, now_ns)

    def _count_lost(self, camera: _Camera) -> None:
        """Count the last reported drops; frames that a killed process had not reported were never captured."""
        if camera.end is not None and camera.end.lost:
            camera.count(camera.end.lost)
            self._inbox.lost_so_far(camera.name, camera.end.lost)

    def _settle(self, camera: _Camera, process: CaptureProcess, now_ns: int) -> None:
        """Wait for the next process of the camera, or end the camera."""
        supervisor, end = camera.supervisor, camera.end
        error = self._end_error(camera, process)
        if error is not None and self._kill_at_ns is None:
            cause = "died" if end is None else "failed"
            may_pass = end is None or (isinstance(end, Failed) and end.again)
            again = may_pass and camera.may_come_back
            supervisor.on_exit(cause, _one_line(error), now_ns, again=again)
            if supervisor.state == "waiting":
                self._fail_if_all_dead(error)
                return
            self.failures.append(Failure(camera.name, error, camera.frames))
            self._report(camera.name, "camera_failed", str(error), supervisor.cause or cause)
        if isinstance(end, Ended) and end.remark:
            self._report(camera.name, "camera_remark", end.remark, "")
        self._remove(camera, now_ns)

    def _remove(self, camera: _Camera, now_ns: int) -> None:
        for report in camera.reports.last(now_ns):
            self._apply(camera, report, now_ns)
        self._cameras.remove(camera)
        self._inbox.close_camera(camera.name)

    def _fail_if_all_dead(self, error: AvqError) -> None:
        """Fail the run when no camera ever opened within its limit of restarts."""
        if all(c.supervisor.exhausted and not c.supervisor.ever_opened for c in self._cameras):
            names = ", ".join(camera.name for camera in self._cameras)
            self._all_dead = MachineError(
                f"no camera could be opened: {names}", seen=_one_line(error), fix=error.fix
            )
            self._inbox.wake()

    def _end_error(self, camera: _Camera, process: CaptureProcess) -> AvqError | None:
        if isinstance(camera.end, Failed):
            return error_of(camera.end)
        return None if camera.end is not None else process.death()

    def _report(
        self, camera: str, kind: str, reason: str, cause: str, counts: Mapping[str, int] | None = None
    ) -> None:
        event: CameraEvent = {
            "kind": kind,
            "t_ns": time.monotonic_ns(),
            "camera": camera,
            "cause": cause,
            "reason": reason,
        }
        if counts:
            event["counts"] = dict(counts)
        self.events.put(event)
        self._inbox.wake()

    @property
    def refused(self) -> AvqError | None:
        """The error that ends the run: a camera without any frame failed for good, or no camera ever opened."""
        failed = next((failure.error for failure in list(self.failures) if failure.frames == 0), None)
        return failed or self._all_dead

    def _stop_camera(self, camera: _Camera, now_ns: int) -> None:
        """Stop a camera at the end of the run: request it at once, kill it after the grace period."""
        assert self._kill_at_ns is not None
        if camera.process is None:
            self._remove(camera, now_ns)
        elif now_ns >= self._kill_at_ns:
            self._kill(camera, now_ns)
        elif not camera.stop_sent:
            camera.stop_sent = True
            camera.process.request_stop()

    def stop(self) -> None:
        """Stop every capture process; kill those that do not end within a second."""
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
            time.sleep(_POLL_FAST_S)
        self._selector.close()


def _one_line(error: AvqError) -> str:
    return f"{error.what} ({error.seen})" if error.seen else error.what


def _unreadable(camera: str, error: Exception) -> Failed:
    return Failed(
        "MachineError",
        f"the capture process of camera '{camera}' sent an unreadable message",
        repr(error),
        "its memory is damaged: check the decoder and the plugin of the source",
        {},
        again=True,
    )
