"""Recorded drives as regression tests: replay a log exactly, compare with a reference, report the differences.

``avq.replay.run.replay`` does the work; the other modules compare, store or show its result. The names here are
loaded on use, because pytest imports this package on every start, for its plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avq.replay.result import Answer, ReplayResult
    from avq.replay.run import ReplayRequest, replay

__all__ = ["Answer", "ReplayRequest", "ReplayResult", "replay"]


def __getattr__(name: str) -> Any:
    if name in ("Answer", "ReplayResult"):
        from avq.replay import result

        return getattr(result, name)
    if name in ("ReplayRequest", "replay"):
        from avq.replay import run

        return getattr(run, name)
    raise AttributeError(f"module 'avq.replay' has no attribute '{name}'")
