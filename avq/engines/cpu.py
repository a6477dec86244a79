"""What of the processor changes numbers: part of manifests and calibration keys."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

#: Flags that select other kernels, hence other rounding, weakest first.
_X86 = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
_ARM = ("asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
_EIGHT_BIT_DOT = ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def is_x86() -> bool:
    """True on 64-bit x86."""
    return platform.machine().lower() in ("x86_64", "amd64")


@lru_cache(maxsize=1)
def instruction_set() -> str:
    """A short stable name, such as "x86-64 avx2 fma avx512f avx512_vnni"."""
    return describe(platform.machine(), _cpuinfo())


def has_eight_bit_dot(isa: str) -> bool:
    """True where ``isa`` (see ``instruction_set``) has a dot product of bytes: VNNI, AMX or SDOT.

    x86 without one adds pairs of products in 16 bits: unsigned times signed bytes can saturate there.
    """
    return not set(isa.split()).isdisjoint(_EIGHT_BIT_DOT)


def describe(machine: str, cpuinfo: str) -> str:
    """The name for a machine type and the text of /proc/cpuinfo; unknown flags are left out."""
    flags = _flags(cpuinfo)
    x86 = machine.lower() in ("x86_64", "amd64")
    known = _X86 if x86 else _ARM
    return " ".join(["x86-64" if x86 else machine, *(flag for flag in known if flag in flags)])


def _flags(cpuinfo: str) -> set[str]:
    """Flags of the first processor listed; on a mixed machine all of them are listed alike."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
