"""Names of GPU architectures."""

from __future__ import annotations


def spelled(name: str) -> str:
    """ "8.9", "89", "sm_89" and "SM89" are "sm89"; what is no number stays as it is."""
    bare = name.strip().lower().removeprefix("sm").replace(".", "").removeprefix("_")
    return f"sm{bare}" if bare.isdigit() else name.strip().lower()
