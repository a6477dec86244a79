"""One thread that hears every capture process: frames into the inbox, ends and deaths into the books."""

from __future__ import annotations

import selectors
import threading
import time
from functools import partial
from queue import SimpleQueue

from avq.daemon.capture import CaptureProcess, error_of
from avq.daemon.inbox import Arrival, SharedInbox
from avq.daemon.messages import Captured, CaptureSettings, Ended, Failed, Message, Opened
from avq.daemon.metrics import Failure
from avq.errors import AvqError
from avq.types import Frame

_LOOK_AGAIN_S = 0.2
_GRACE_S = 1.0


class _Camera:
    """What has been heard from one capture process."""

    def __init__(self, settings: CaptureSettings) -> None:
        self.name = settings.camera
        self.process = CaptureProcess(settings)
        self.live = True
        self.frames = 0
        self.end: Ended | Failed | None = None


class Receiver:
    """Starts a capture process per camera and listens until each has ended.

    ``failures`` grows as cameras end and may be read at any time.
    """

    def __init__(self, settings: list[CaptureSettings], inbox: SharedInbox) -> None:
        self.failures: list[Failure] = []
        self._events: SimpleQueue[tuple[str, str, str]] = SimpleQueue()
        self._inbox = inbox
        self._selector = selectors.DefaultSelector()
        self._kill_at_s: float | None = None
        self._cameras: list[_Camera] = []
        try:
            for one in settings:
                inbox.open_camera(one.camera, every=False)
                self._listen_to(_Camera(one))
        except BaseException:
            for camera in self._cameras:
                camera.process.close(0)
            raise
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> dict[str, int]:
        """Process id per camera that is still being captured."""
        return {camera.name: camera.process.pid for camera in list(self._cameras)}

    def _listen_to(self, camera: _Camera) -> None:
        self._cameras.append(camera)
        process = camera.process
        self._selector.register(process.announce_fd, selectors.EVENT_READ, partial(self._hear, camera))
        self._selector.register(process.noise_fd, selectors.EVENT_READ, partial(self._quieten, camera))

    def _run(self) -> None:
        while self._cameras:
            for key, _ in self._selector.select(_LOOK_AGAIN_S):
                if key.fd in self._selector.get_map():  # an end in this very round closes two of them
                    key.data()
            if self._kill_at_s is not None and time.monotonic() >= self._kill_at_s:
                for camera in self._cameras:
                    camera.process.kill()
        self._selector.close()

    def _hear(self, camera: _Camera) -> None:
        try:
            messages = camera.process.hear()
            for message in messages or ():
                self._take(camera, message)
        except Exception as error:  # one camera's nonsense must not deafen the others
            camera.process.kill()
            camera.end = _nonsense(camera.name, error)
            messages = []
        if messages is None:
            self._finish(camera)

    def _take(self, camera: _Camera, message: Message) -> None:
        if isinstance(message, Captured):
            self._arrive(camera, message)
        elif isinstance(message, Opened):
            camera.live = message.live
            self._inbox.open_camera(camera.name, every=message.every)
        else:
            camera.end = message

    def _arrive(self, camera: _Camera, message: Captured) -> None:
        camera.frames += 1
        process = camera.process
        pixels = process.pixels(message.slot, message.width_px, message.height_px)
        frame = Frame(camera.name, message.seq, message.t_capture_ns, pixels)
        release = partial(process.give_back, message.slot)
        self._inbox.offer(Arrival(frame, camera.live, release), message.lost)

    def _quieten(self, camera: _Camera) -> None:
        if not camera.process.swallow_noise():
            self._selector.unregister(camera.process.noise_fd)

    def _finish(self, camera: _Camera) -> None:
        for fd in (camera.process.announce_fd, camera.process.noise_fd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        camera.process.close(_GRACE_S)
        self._cameras.remove(camera)
        error = self._error(camera)
        if error is not None:
            self.failures.append(Failure(camera.name, error, camera.frames))
            self._events.put(("camera_failed", camera.name, str(error)))
        if isinstance(camera.end, Ended) and camera.end.remark:
            self._events.put(("camera_remark", camera.name, camera.end.remark))
        self._inbox.close_camera(camera.name, camera.end.lost if camera.end else None)

    def _error(self, camera: _Camera) -> AvqError | None:
        if isinstance(camera.end, Failed):
            return error_of(camera.end)
        stopped_by_us = self._kill_at_s is not None
        return None if camera.end is not None or stopped_by_us else camera.process.death()

    def next_event(self) -> tuple[str, str, str] | None:
        """(kind, camera, reason) of a camera that ended in an uncommon way, each once; None when there is no more."""
        return None if self._events.empty() else self._events.get()

    @property
    def refused(self) -> AvqError | None:
        """The error of a camera that never gave a frame: the request was wrong from the start."""
        return next((failure.error for failure in list(self.failures) if failure.frames == 0), None)

    def stop(self) -> None:
        """Ask every capture process to end, kill those that do not within a second, wait for the last."""
        self._kill_at_s = time.monotonic() + _GRACE_S
        for camera in list(self._cameras):
            camera.process.ask_to_stop()
        self._thread.join()


def _nonsense(camera: str, error: Exception) -> Failed:
    return Failed(
        "MachineError",
        f"the capture process of camera '{camera}' sent what cannot be understood",
        repr(error),
        "its memory is damaged: suspect the decoder or the source's plugin",
        {},
    )
