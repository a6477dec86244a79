"""Recorded drives as regression tests: replay a log exactly, compare with a reference, say what changed.

``avq.replay.run.replay`` is the heart; everything else compares, keeps or shows what it returns.
"""

from __future__ import annotations

from avq.replay.result import Answer, ReplayResult
from avq.replay.run import ReplayRequest, replay

__all__ = ["Answer", "ReplayRequest", "ReplayResult", "replay"]
