"""The daemon's side of one capture process: start it, read its messages, return slots, end it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import avq
from avq import errors
from avq.daemon import systemd
from avq.daemon.capture_protocol import (
    STOP,
    CaptureSettings,
    Failed,
    Message,
    Slot,
    Unframer,
    decode,
    framed_settings,
)
from avq.errors import AvqError, MachineError
from avq.types import U8

SLOTS = 4
_STDERR_BYTES = 4096
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8", "OPENCV_VIDEOIO_DEBUG": "0"}


class CaptureProcess:
    """One killable child that reads one camera.

    Args:
        settings: sent over the pipe, because other users can read the command line.
        slots: pictures that may be in flight at once.
    """

    def __init__(self, settings: CaptureSettings, slots: int = SLOTS) -> None:
        self.settings = settings
        self._slots: list[Slot] = []
        self._lock = threading.Lock()  # give_back and close run on different threads
        self._unframer = Unframer()
        self._lent = 0  # slots that the daemon holds
        self._stderr_tail = b""
        self.announce_fd = self._credit_fd = self.stderr_fd = -1
        try:
            self._open(slots)
        except BaseException:  # out of descriptors or processes: close everything
            self._close_own()
            raise
        os.set_blocking(self.announce_fd, False)
        self._send(framed_settings(settings))

    def _open(self, slots: int) -> None:
        """Create slots and pipes, and start the child."""
        for _ in range(slots):
            self._slots.append(Slot.create())
        self.announce_fd, child_announce = os.pipe()
        try:
            child_credit, self._credit_fd = os.pipe()
            try:
                self._process = self._spawn(child_announce, child_credit)
            finally:
                os.close(child_credit)
        finally:
            os.close(child_announce)

    def _spawn(self, announce_fd: int, credit_fd: int) -> subprocess.Popen[bytes]:
        inherited = (announce_fd, credit_fd, *(slot.fd for slot in self._slots))
        process = subprocess.Popen(
            [sys.executable, "-m", "avq.daemon.capture_process", *map(str, inherited)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the daemon
        )
        assert process.stderr is not None
        self.stderr_fd = process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)
        return process

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_messages(self) -> Iterator[Message] | None:
        """Read the messages that have arrived, without waiting; None when the child has closed its side.

        Each is decoded when it is taken, so messages before an unreadable one are still processed.
        """
        try:
            data = os.read(self.announce_fd, 65536)
        except BlockingIOError:
            return iter(())
        return map(decode, self._unframer.feed(data)) if data else None

    def drain_stderr(self) -> bool:
        """Keep the tail of the standard error of the child; False at its end."""
        try:
            data = os.read(self.stderr_fd, 65536)
        except BlockingIOError:
            return True
        self._stderr_tail = (self._stderr_tail + data)[-_STDERR_BYTES:]
        return bool(data)

    def pixels(self, slot: int, width_px: int, height_px: int) -> U8:
        """Return the picture in a slot, (H, W, 3) uint8, valid until ``give_back(slot)``."""
        with self._lock:
            self._lent += 1
        return self._slots[slot].pixels(width_px, height_px)

    def give_back(self, slot: int) -> None:
        """Return a slot to the child, which may write it again."""
        with self._lock:
            self._lent -= 1
        self._send(bytes([slot]))

    @property
    def held(self) -> bool:
        """Whether the daemon holds every slot, so that the child can hand over nothing."""
        return self._lent >= len(self._slots)

    def request_stop(self) -> None:
        """Make the child end after its current read."""
        self._send(bytes([STOP]))

    def _send(self, data: bytes) -> None:
        with self._lock:
            if self._credit_fd >= 0:
                with suppress(BrokenPipeError):  # it has ended: the other pipe reports that, in order
                    os.write(self._credit_fd, data)

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()

    @property
    def exited(self) -> bool:
        """Whether the child has ended; never waits."""
        return self._process.poll() is not None

    @property
    def busy(self) -> bool:
        """Whether its main thread computes or waits for a processor, not for a camera."""
        try:
            stat = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "R"

    def release(self) -> None:
        """Close every descriptor, which ends the child unless the kernel holds it; never waits."""
        if self._credit_fd < 0:
            return
        self._close_own()
        self.drain_stderr()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _close_own(self) -> None:
        """Close the pipes and the slots of this side."""
        with self._lock:
            if self._credit_fd >= 0:
                os.close(self._credit_fd)
            self._credit_fd = -1
        if self.announce_fd >= 0:
            os.close(self.announce_fd)
            self.announce_fd = -1
        for slot in self._slots:
            slot.close()

    def close(self) -> None:
        """Kill the child and wait for its end."""
        self.kill()
        self._process.wait()
        self.release()

    def death(self) -> AvqError:
        """Return the error of a child that ended without a message."""
        code = self._process.returncode
        how = "the kernel does not end it" if code is None else f"exit code {code}"
        how = f"killed by signal {-code}" if code is not None and code < 0 else how
        tail = self._stderr_tail.decode("utf-8", "replace").strip().splitlines()
        return MachineError(
            f"the capture process of camera '{self.settings.camera}' died",
            seen=f"{how}" + (f"; {tail[-1]}" if tail else ""),
            fix="a decoder crashed, or the kernel killed it for its memory: check 'dmesg' and the source",
        )


def _environment() -> dict[str, str]:
    """Environment of the child: quiet libraries, and the same avq whatever the working directory holds.

    An installed avq is importable anyway; its folder in PYTHONPATH would let other packages there shadow the standard
    library.
    """
    home = str(Path(avq.__file__).resolve().parents[1])
    installed = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    paths = [*([] if installed else [home]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**_QUIET, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    inherited = {
        name: value for name, value in os.environ.items() if name not in systemd.ENVIRONMENT_VARIABLES
    }
    return {**inherited, **settings}


def error_of(failed: Failed) -> AvqError:
    """Rebuild the error that the child raised."""
    kind = getattr(errors, failed.kind, errors.DataError)
    known: type[AvqError] = (
        kind if isinstance(kind, type) and issubclass(kind, AvqError) else errors.DataError
    )
    return known(failed.what, seen=failed.seen, fix=failed.fix)
