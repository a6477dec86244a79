"""How fast a model is in every engine, encoding and precision here, timed side by side.

    python tests/bench/bench_engines.py MODEL.onnx [MORE.onnx ...] [--rounds 60] [--threads 1]

Models must take one uint8 picture (a bundle's model.onnx). Prints p50, p99 and the paired ratio to the first
contender with its 95 % interval, and the cost of the call itself (the null engine).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from avq.engines import builtin_engines
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.measure.latency import paired_latency, summary
from avq.types import EnginePrecision, SessionOptions
from tests.engines.null import NullEngine


def contenders(path: Path, threads: int) -> dict[str, Session]:
    """Every (engine, precision) that opens the file."""
    opened: dict[str, Session] = {}
    for engine in builtin_engines():
        for precision in engine.float_precisions:
            session = _open(engine, path, precision, threads)
            if session is not None:
                opened[f"{path.parent.name}/{path.name} {engine.name} {session.precision}"] = session
    return opened


def _open(engine: Engine, path: Path, precision: EnginePrecision, threads: int) -> Session | None:
    try:
        return engine.open(path, SessionOptions(threads=threads, precision=precision))
    except AvqError as error:
        print(f"{path.name} in {engine.name} {precision}: {error.what}")
        return None


def _runner(session: Session) -> Callable[[], object]:
    picture = session.inputs[0]  # type: ignore[attr-defined]
    tensor = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    return lambda: session.infer(tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    sessions = {k: s for path in asked.models for k, s in contenders(path, asked.threads).items()}
    runs = {name: _runner(session) for name, session in sessions.items()}
    null = NullEngine().open(b"", SessionOptions())
    runs["null engine"] = lambda: null.infer(np.zeros((1, 3, 8, 8), np.uint8))
    samples = paired_latency(runs, rounds=asked.rounds)
    print(f"{'contender':60} {'p50 ms':>8} {'p99 ms':>8}  time / first")
    for row in summary(samples, next(iter(runs))):
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"{row['name']:60} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}  {ratio}")


if __name__ == "__main__":
    main()
