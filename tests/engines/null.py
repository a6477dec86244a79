"""An engine that computes nothing: for timing the daemon around it, and for its tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avq.types import U8, AnyArray, EnginePrecision, EngineStatus, RawOutputs, SessionOptions


class NullEngine:
    """Answers every picture with the same arrays, after ``busy_ns`` of work.

    Args:
        outputs: what each ``infer`` returns, by output name.
        busy_ns: nanoseconds to stay busy per call (spinning, as a CPU engine would), 0 for none.
    """

    name = "null"

    def __init__(self, outputs: Mapping[str, AnyArray] | None = None, busy_ns: int = 0) -> None:
        self._outputs = dict(outputs or {})
        self._busy_ns = busy_ns

    def status(self) -> EngineStatus:
        return EngineStatus(self.name, True, "1", False, True, "computes nothing; for benchmarks and tests")

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        return ("f32",)

    def encodings(self) -> tuple[str, ...]:
        return ()

    def open(self, model: bytes | Path, options: SessionOptions) -> NullSession:
        """``model`` is not looked at."""
        return NullSession(self._outputs, self._busy_ns, options.precision)


class NullSession:
    """Returns canned outputs."""

    engine = "null"

    def __init__(self, outputs: Mapping[str, AnyArray], busy_ns: int, precision: str) -> None:
        self.precision = precision
        self._outputs = outputs
        self._busy_ns = busy_ns

    def infer(self, tensor: U8) -> RawOutputs:
        return self.run({"": tensor})

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        until = time.monotonic_ns() + self._busy_ns
        while time.monotonic_ns() < until:
            pass
        return self._outputs

    def close(self) -> None:
        """Nothing to free."""
