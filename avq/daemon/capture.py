"""The daemon's side of one capture process: start it, hear it, give slots back, end it."""

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
from avq.daemon.capture_protocol import STOP, CaptureSettings, Failed, Message, Slot, Unframer, decode, framed
from avq.errors import AvqError, MachineError
from avq.types import U8

SLOTS = 4
_NOISE_BYTES = 4096
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8", "OPENCV_VIDEOIO_DEBUG": "0"}


class CaptureProcess:
    """One killable child that reads one camera.

    Args:
        settings: sent over the pipe, not the command line, which everybody may read.
        slots: pictures that may be under way at once.
    """

    def __init__(self, settings: CaptureSettings, slots: int = SLOTS) -> None:
        self.settings = settings
        self._slots = [Slot.create() for _ in range(slots)]
        self._lock = threading.Lock()  # give_back comes from other threads than close
        self._unframer = Unframer()
        self._lent = 0  # slots that we have
        self._noise = b""
        self.announce_fd, child_announce = os.pipe()
        child_credit, self._credit_fd = os.pipe()
        self.noise_fd = -1
        try:
            self._process = self._spawn(child_announce, child_credit)
        except BaseException:  # no process to be had: nothing may stay open
            self._close_own()
            raise
        finally:
            os.close(child_announce)
            os.close(child_credit)
        os.set_blocking(self.announce_fd, False)
        self._tell(framed(settings))

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
        self.noise_fd = process.stderr.fileno()
        os.set_blocking(self.noise_fd, False)
        return process

    @property
    def pid(self) -> int:
        return self._process.pid

    def hear(self) -> Iterator[Message] | None:
        """Messages that have come, without waiting; None when the child has closed its side.

        Each is decoded when it is asked for: what came before a nonsense is still heard.
        """
        try:
            data = os.read(self.announce_fd, 65536)
        except BlockingIOError:
            return iter(())
        return map(decode, self._unframer.feed(data)) if data else None

    def swallow_noise(self) -> bool:
        """Keep the tail of what libraries print to standard error; False at its end."""
        try:
            data = os.read(self.noise_fd, 65536)
        except BlockingIOError:
            return True
        self._noise = (self._noise + data)[-_NOISE_BYTES:]
        return bool(data)

    def pixels(self, slot: int, width_px: int, height_px: int) -> U8:
        """The picture in a slot, ours until ``give_back(slot)``."""
        with self._lock:
            self._lent += 1
        return self._slots[slot].pixels(width_px, height_px)

    def give_back(self, slot: int) -> None:
        """The child may write this slot again."""
        with self._lock:
            self._lent -= 1
        self._tell(bytes([slot]))

    @property
    def held(self) -> bool:
        """Every slot is ours: the child can hand over nothing, whatever its source does."""
        return self._lent >= len(self._slots)

    def ask_to_stop(self) -> None:
        """The child ends after the read it is in."""
        self._tell(bytes([STOP]))

    def _tell(self, data: bytes) -> None:
        with self._lock:
            if self._credit_fd >= 0:
                with suppress(BrokenPipeError):  # it is dead: the announcing pipe tells so, in order
                    os.write(self._credit_fd, data)

    def kill(self) -> None:
        """End the child now, whatever it is doing."""
        self._process.kill()

    @property
    def exited(self) -> bool:
        """The child is gone, and no zombie is left of it. Never waits."""
        return self._process.poll() is not None

    @property
    def busy(self) -> bool:
        """Its main thread computes or waits for a processor: it does not wait for a camera."""
        try:
            stat = Path(f"/proc/{self.pid}/task/{self.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "R"

    def release(self) -> None:
        """Close every descriptor; the child ends by that, unless the kernel holds it. Never waits."""
        if self._credit_fd < 0:
            return
        self._close_own()
        self.swallow_noise()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _close_own(self) -> None:
        """Our ends of the pipes, and the slots."""
        with self._lock:
            os.close(self._credit_fd)
            self._credit_fd = -1
        os.close(self.announce_fd)
        for slot in self._slots:
            slot.close()

    def close(self) -> None:
        """Kill the child and wait for its end."""
        self.kill()
        self._process.wait()
        self.release()

    def death(self) -> AvqError:
        """Why a closed child ended without saying so."""
        code = self._process.returncode
        how = "the system does not let it end" if code is None else f"exit code {code}"
        how = f"killed by signal {-code}" if code is not None and code < 0 else how
        tail = self._noise.decode("utf-8", "replace").strip().splitlines()
        return MachineError(
            f"the capture process of camera '{self.settings.camera}' died",
            seen=f"{how}" + (f"; {tail[-1]}" if tail else ""),
            fix="a decoder crashed or the system killed it (memory?): see 'dmesg' and the source",
        )


def _environment() -> dict[str, str]:
    """Quiet libraries, and the same avq as ours whatever the working directory holds.

    An installed avq is found anyway; naming its folder would let other packages there hide the standard library.
    """
    home = str(Path(avq.__file__).resolve().parents[1])
    installed = home in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    paths = [*([] if installed else [home]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {**_QUIET, "PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    inherited = {name: value for name, value in os.environ.items() if name not in systemd.VARIABLES}
    return {**inherited, **settings}


def error_of(failed: Failed) -> AvqError:
    """The error the child raised, as the class it was."""
    kind = getattr(errors, failed.kind, errors.DataError)
    known: type[AvqError] = (
        kind if isinstance(kind, type) and issubclass(kind, AvqError) else errors.DataError
    )
    return known(failed.what, seen=failed.seen, fix=failed.fix)
