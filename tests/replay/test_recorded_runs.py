"""A record replayed with its own bundle and configuration has the order, counts, late frames and modes of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avq.clock import ReplayClock
from avq.daemon.inbox import STRIDE, Arrival, FrameCounts, Inbox
from avq.daemon.modes import Mode
from avq.daemon.pipeline import Pipeline
from avq.daemon.run_events import run_ended, run_started
from avq.recording import RecorderSink
from avq.replay import ReplayRequest, replay
from avq.replay.result import ReplayResult
from avq.types import Detections, Frame, LatencyBudget, Published, StageTimes
from tests.daemon.daemon_kit import LABELS, null_parts
from tests.replay.replay_kit import null_bundle, null_host

MS = 1_000_000
START_NS = 5_000_000_000


@dataclass
class Recording:
    """Publisher of the simulated run: the real recorder, and what was published."""

    sink: RecorderSink
    messages: list[Published] = field(default_factory=list)

    def publish(self, message: Published, frame: Frame, times: StageTimes, *, wait: bool) -> None:
        self.sink.write_timing(message, times)
        self.sink.write(message, frame)
        self.messages.append(message)

    def event(self, event: Mapping[str, Any]) -> None:
        self.sink.write_event(event)


@dataclass(frozen=True)
class Stages:
    """Preprocessor, session and decoder that take random times on the clock."""

    inner: Any
    clock: ReplayClock
    rng: np.random.Generator
    infer_ms: float
    engine: str = "null"
    precision: str = "f32"

    def prepare(self, picture: Any) -> Any:
        self.clock.advance_by(int(self.rng.integers(100_000, 900_000)))
        return self.inner.preprocessor.prepare(picture)

    def infer(self, tensor: Any) -> Any:
        spread = self.rng.lognormal(0, 0.25) * (3.0 if self.rng.random() < 0.03 else 1.0)
        self.clock.advance_by(int(self.infer_ms * spread * MS))
        return self.inner.session.infer(tensor)

    def run(self, feeds: Any) -> Any:
        return self.inner.session.run(feeds)

    def close(self) -> None:
        """Nothing to free."""

    def decode(self, raw: Any, model_input: Any, *, camera: str, seq: int, t_capture_ns: int) -> Detections:
        self.clock.advance_by(int(self.rng.integers(50_000, 400_000)))
        return Detections.none(camera, seq, t_capture_ns)


@dataclass
class Run:
    """What the simulated daemon did."""

    messages: list[Published]
    counts: FrameCounts
    misses: int
    modes: tuple[str, ...]

    @property
    def order(self) -> list[tuple[str, int]]:
        return [(message.detections.camera, message.detections.seq) for message in self.messages]


def recorded(
    path: Path,
    seed: int,
    ladder: list[tuple[str, int, str, float]],
    deadline_ms: float,
    *,
    events: bool = True,
) -> Run:
    """Run the daemon's inbox and pipeline on a virtual clock with random times, and record it.

    Args:
        path: the log.
        seed: of everything random.
        ladder: mode, stride, bundle digest and inference time in ms.
        deadline_ms: of the run.
        events: record the events that frame the run, as records of older versions do not.
    """
    rng, clock = np.random.default_rng(seed), ReplayClock(START_NS)
    cameras = [f"c{n}" for n in rng.permutation(int(rng.integers(1, 4)))]
    inner = null_parts()
    modes = []
    for name, stride, digest, infer_ms in ladder:
        stages = Stages(inner, clock, rng, infer_ms)
        parts = replace(
            inner, preprocessor=stages, session=stages, decoder=stages, bundle_digest=digest, mode=name
        )
        modes.append(Mode(parts, stride, (infer_ms + 0.8) * MS))
    recording = Recording(RecorderSink(path, labels=LABELS, image="png"))
    pipeline = Pipeline(modes, clock, LatencyBudget(round(deadline_ms * MS)), recording)
    if events:
        recording.event(run_started(pipeline, tuple(modes)))
    inbox, due = Inbox(), _arrivals(rng, cameras, 60)
    for camera in cameras:
        inbox.open_camera(camera, every=False)
    while True:
        while due and due[0][0] <= clock.now_ns():
            _, camera, seq, capture_ns, lost = due.pop(0)
            pixels = np.full((4, 6, 3), seq % 256, np.uint8)
            inbox.offer(Arrival(Frame(camera, seq, capture_ns, pixels)), {"slot": lost})
        arrival = inbox.take()
        if arrival is None and not due:
            break
        if arrival is None:
            clock.advance_to(due[0][0])
        elif not pipeline.wants(arrival.frame):
            inbox.finished(arrival.frame.camera, STRIDE)
        else:
            pipeline.process(arrival)
            inbox.finished(arrival.frame.camera)
            clock.advance_by(int(rng.exponential(0.3) * MS))  # publishing, side tasks
    counts = inbox.counts_by_camera()
    if events:
        recording.event(run_ended(pipeline, counts))
    recording.sink.close()
    return Run(recording.messages, inbox.counts(), pipeline.judge.misses, tuple(pipeline.modes))


def _arrivals(
    rng: np.random.Generator, cameras: list[str], frames: int
) -> list[tuple[int, str, int, int, int]]:
    """(arrival, camera, seq, capture, lost before) of every frame, by arrival; some are lost by the capture."""
    due = []
    for camera in cameras:
        period_ms, delay_ms = rng.uniform(8, 50), rng.uniform(0.2, 6)
        capture_ns, lost, last_ns = START_NS + int(rng.uniform(0, 40) * MS), 0, 0
        for seq in range(frames):
            capture_ns += int(period_ms * rng.uniform(0.9, 1.1) * MS)
            if rng.random() < 0.05:
                lost += 1
                continue
            last_ns = max(last_ns + 1, capture_ns + int((delay_ms + rng.exponential(1.5)) * MS))
            due.append((last_ns, camera, seq, capture_ns, lost))
    return sorted(due)


def same(result: ReplayResult, run: Run) -> None:
    assert [answer.key for answer in result.answers] == run.order
    counts = result.account
    assert (counts.captured, counts.published) == (run.counts.captured, run.counts.published)
    assert sum(counts.dropped.values()) == sum(run.counts.dropped.values())
    assert (result.misses, result.modes) == (run.misses, run.modes)
    ages = [answer.published.age_ns for answer in result.answers]
    assert ages == [message.age_ns for message in run.messages]
    assert [answer.published.mode for answer in result.answers] == [message.mode for message in run.messages]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("bundles")
    paths = {name: null_bundle(folder / f"{name}.avq", model=name.encode()) for name in ("full", "small")}
    host = null_host()
    return {
        name: (path, replay(ReplayRequest("scene://drive?frames=1", path), host=host).bundle_digest)
        for name, path in paths.items()
    }


def replayed_as_recorded(seed: int, folder: Path, bundles: dict[str, tuple[Path, str]]) -> None:
    rng = np.random.default_rng(1000 + seed)
    infer_ms, deadline_ms = float(rng.uniform(3, 30)), float(np.round(rng.uniform(15, 60), 1))
    full, small = bundles["full"], bundles["small"]
    ladder = [("full" if seed % 3 else "normal", 1, full[1], infer_ms)]
    tables = ""
    if seed % 3:
        ladder.append(("half", 2, full[1], infer_ms))
        tables = '[[modes]]\nname = "full"\n[[modes]]\nname = "half"\nstride = 2\n'
    if seed % 3 == 2:
        ladder.append(("small", 1, small[1], 0.3 * infer_ms))
        tables += f'[[modes]]\nname = "small"\nbundle = "{small[0]}"\n'
    log = folder / f"{seed}.mcap"
    run = recorded(log, seed, ladder, deadline_ms)
    config = folder / f"{seed}.toml"
    config.write_text(
        f'bundle = "{full[0]}"\n[[cameras]]\nid = "c0"\nsource = "scene://drive"\n'
        f"[budget]\ndeadline_ms = {deadline_ms}\n{tables}"
    )
    result = replay(ReplayRequest(str(log), full[0], config), host=null_host())
    assert result.timing == "recorded"
    same(result, run)
    if len(ladder) == 1:
        alone = replay(ReplayRequest(str(log), full[0]), host=null_host())
        same(alone, run)
        older = folder / f"{seed}-older.mcap"
        run = recorded(older, seed, ladder, deadline_ms, events=False)
        result = replay(ReplayRequest(str(older), full[0], config), host=null_host())
        assert [answer.key for answer in result.answers] == run.order
        assert result.misses == run.misses and set(result.account.dropped) <= {"unrecorded"}
        assert alone.deadline_ns == round(deadline_ms * MS) and "recorded" in alone.deadline_remark


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_run_is_replayed_as_it_was(
    seed: int, tmp_path: Path, bundles: dict[str, tuple[Path, str]]
) -> None:
    replayed_as_recorded(seed, tmp_path, bundles)


@pytest.mark.slow
def test_sixty_recorded_runs_are_replayed_as_they_were(
    tmp_path: Path, bundles: dict[str, tuple[Path, str]]
) -> None:
    for seed in range(3, 63):
        replayed_as_recorded(seed, tmp_path, bundles)
