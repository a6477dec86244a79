"""Two engines of a plugin: the engine AVQ_TEST_ENGINE on a machine whose load the test sets while it serves.

``slow-best`` takes 60 ms and ``slow-small`` 15 ms per frame, times the number in the file AVQ_TEST_LOAD.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import avq
from avq.types import EngineStatus, SessionOptions

COSTS_S = {"slow-best": 0.060, "slow-small": 0.015}


def _runtime() -> Any:
    from avq.engines import engine_by_name  # a test may; plugins of others bring a runtime of their own

    return engine_by_name(os.environ["AVQ_TEST_ENGINE"])


class SlowEngine:
    float_precisions = ("f32",)

    def __init__(self, name: str) -> None:
        self.name = name

    def status(self) -> EngineStatus:
        return EngineStatus(self.name, True, "1", False, True, "for tests")

    def encodings(self) -> tuple[str, ...]:
        return ()

    def open(self, model: bytes | Path, options: SessionOptions) -> SlowSession:
        return SlowSession(self.name, _runtime().open(model, options))


class SlowSession:
    def __init__(self, name: str, inner: Any) -> None:
        self.engine, self.precision = name, inner.precision
        self._inner, self._cost_s = inner, COSTS_S[name]

    def infer(self, tensor: Any) -> Mapping[str, Any]:
        time.sleep(self._cost_s * float(Path(os.environ["AVQ_TEST_LOAD"]).read_text()))
        return self._inner.infer(tensor)

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._inner.run(feeds)

    def close(self) -> None:
        self._inner.close()


@avq.hookimpl
def avq_register_engines() -> tuple[SlowEngine, ...]:
    return tuple(SlowEngine(name) for name in COSTS_S)
