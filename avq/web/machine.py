"""Readings of the machine: temperatures and clocks where Linux shows them, memory, load."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SYS = Path("/sys")
_KEPT_S = 2.0


@dataclass(frozen=True, slots=True)
class Machine:
    """One look at the machine.

    Attributes:
        temperatures_c: degrees Celsius per thermal zone; empty where there are none.
        clocks_hz: current and highest frequency per CPU; empty where the kernel does not tell.
        memory_bytes: resident memory of this process.
        load: of the last minute, in processes; cpus: that this process may use.
    """

    temperatures_c: dict[str, float]
    clocks_hz: dict[str, tuple[float, float]]
    memory_bytes: int
    load: float
    cpus: int


class MachineReader:
    """Reads at most every two seconds, whoever asks how often.

    Args:
        sys_folder: where sysfs is mounted.
    """

    def __init__(self, sys_folder: Path = _SYS) -> None:
        self._sys = sys_folder
        self._read_s = float("-inf")
        self._last: Machine | None = None

    def read(self) -> Machine:
        now_s = time.monotonic()
        if self._last is None or now_s - self._read_s > _KEPT_S:
            self._last, self._read_s = self._look(), now_s
        return self._last

    def _look(self) -> Machine:
        return Machine(
            temperatures(self._sys),
            clocks(self._sys),
            resident_bytes(),
            os.getloadavg()[0],
            len(os.sched_getaffinity(0)),
        )


def temperatures(sys_folder: Path = _SYS) -> dict[str, float]:
    """Degrees Celsius per thermal zone, named by its type; zones of one type are numbered."""
    found: dict[str, float] = {}
    for zone in sorted((sys_folder / "class/thermal").glob("thermal_zone*")):
        with suppress(OSError, ValueError):  # zones that are switched off refuse to be read
            name = (zone / "type").read_text().strip()
            value = int((zone / "temp").read_text()) / 1000
            found[f"{name} {zone.name[12:]}" if name in found else name] = value
    return found


def clocks(sys_folder: Path = _SYS) -> dict[str, tuple[float, float]]:
    """(current, highest) hertz per CPU, as its frequency driver tells."""
    found = {}
    for folder in sorted((sys_folder / "devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        with suppress(OSError, ValueError):
            now_khz = int((folder / "scaling_cur_freq").read_text())
            found[folder.parent.name] = (now_khz * 1e3, int((folder / "cpuinfo_max_freq").read_text()) * 1e3)
    return found


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
