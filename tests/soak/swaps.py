"""Bundles swapped under a live camera: python -m tests.soak.swaps BUNDLE_A BUNDLE_B [SWAPS [FPS]]

A and B take turns, every fourth time a copy whose model is damaged, or one whose engine breaks on its third frame.
Prints the frames lost, and the ages of frames around a swap beside those far from one; exit code 1 where a bar was
missed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from avq.bundle import MODEL
from avq.daemon import ActiveModes, FrameResult, RunOptions, RunSummary, serve_bundle
from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.modes import WARM_UPS, ModeSource, Opener
from avq.errors import AvqError
from avq.measure.golden import require_golden
from avq.plugins import PluginHost
from avq.types import U8, LatencyBudget, RawOutputs

_APART_S = 2.0


class BreaksSoon:
    """A real session that raises on its third frame."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._left = inner, WARM_UPS + 2
        self.engine, self.precision = inner.engine, inner.precision

    def infer(self, tensor: U8) -> RawOutputs:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("broke on its third frame")
        raw: RawOutputs = self._inner.infer(tensor)
        return raw

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self.infer(feeds[""])

    def close(self) -> None:
        self._inner.close()


def main(a: str, b: str, swaps: int = 50, fps: int = 30) -> int:
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder) / "damaged.avq"
        shutil.copytree(a, damaged)
        with (damaged / MODEL).open("r+b") as file:
            file.seek(1000)
            file.write(b"\0" * 8)
        return _run([Path(a).absolute(), Path(b).absolute()], damaged, swaps, fps)


def _run(good: list[Path], damaged: Path, swaps: int, fps: int) -> int:
    host = PluginHost()
    opener = Opener(
        host.running_engines(),
        allow_unaccepted=True,
        on_open=lambda bundle, detector: cast(None, require_golden(bundle, detector.session)),
    )

    def prepare(path: Path | None) -> ActiveModes:
        assert path is not None
        served = opener.ladder([ModeSource("normal", path.with_name(path.name.removesuffix("#breaks")))])
        if not path.name.endswith("#breaks"):
            return served
        mode = served.modes[0]
        broken = replace(mode.parts, session=BreaksSoon(mode.parts.session), bundle_digest="breaks")
        return replace(served, modes=(replace(mode, parts=broken),))

    first = opener.ladder([ModeSource("normal", good[1])])
    swapper, turns, outcomes = BundleSwapper(first, prepare), list[FrameResult](), Counter[str]()
    over = threading.Event()

    def ask() -> None:
        for number in range(swaps):
            serving = swapper.serving.bundle
            path = good[serving is not None and serving.path == good[0]]
            if number % 4 == 3:
                path = damaged if number % 8 == 3 else path.with_name(path.name + "#breaks")
            try:
                swapper.swap(path)
                outcomes["swapped"] += 1
            except AvqError as error:
                outcomes[error.what.split(" of ")[0]] += 1
            over.wait(_APART_S)
        over.set()

    def turned(turn: FrameResult) -> None:
        turns.append(turn)
        if over.is_set():
            raise KeyboardInterrupt

    threading.Thread(target=ask).start()
    events: list[Mapping[str, Any]] = []
    try:
        summary: RunSummary | None = serve_bundle(
            first.modes,
            sources={"front": f"scene://drive?fps={fps}&size=640x360"},
            sinks=[],
            budget=LatencyBudget(10**9),
            options=RunOptions(swapper=swapper, on_result=turned, on_event=events.append),
        )
    except KeyboardInterrupt:
        summary = None
    swapper.close()
    assert summary is None
    return _judge(turns, outcomes, fps)


def _judge(turns: list[FrameResult], outcomes: Counter[str], fps: int) -> int:
    seqs = [turn.published.detections.seq for turn in turns]
    bundles = [turn.published.bundle_digest for turn in turns]
    ages = np.array([turn.published.age_ns for turn in turns]) / 1e6
    changes = [i for i in range(1, len(turns)) if bundles[i] != bundles[i - 1]]
    near = np.zeros(len(turns), bool)
    for i in changes:
        near[i : i + 3] = True
    lost_near = sum(seqs[i] - seqs[i - 1] - 1 for i in range(1, len(turns)) if near[i])
    lost = seqs[-1] - seqs[0] + 1 - len(seqs)
    extra = np.percentile(ages[near], 99) - np.percentile(ages[~near], 99)
    print(f"frames {len(turns)}, dropped for a newer one {lost}, of them around a swap {lost_near}")
    print(f"changes of the serving bundle {len(changes)}; {dict(outcomes)}")
    print(f"age around a swap p50 {np.median(ages[near]):.1f} p99 {np.percentile(ages[near], 99):.1f} ms; elsewhere "
          f"p50 {np.median(ages[~near]):.1f} p99 {np.percentile(ages[~near], 99):.1f} ms")  # fmt: skip
    print(f"extra latency p99 {extra:.1f} ms, frame period {1000 / fps:.1f} ms")
    held = lost_near == 0 and extra <= 1000 / fps and len(changes) > 1
    print("every bar held" if held else "MISSED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(cast(Any, main)(*sys.argv[1:3], *map(int, sys.argv[3:])))
