"""What watching costs the loop per frame: histograms, verdict, the sign of life, and the live_state the page reads.

Measured on the loop's own calls, one core: alone, and while a client asks for /metrics and /status five times a
second. Usage: python -m tests.bench.bench_telemetry [--frames 20000] [--cpu 0]
Bar: p50 of all telemetry <= 20 us per frame.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable

import httpx
import numpy as np

from avq.clock import SystemClock
from avq.daemon.memory import MemoryWatch
from avq.daemon.metrics import LatencyJudge, Metrics
from avq.daemon.pipeline import FrameResult, Pipeline
from avq.daemon.publisher import Publisher
from avq.daemon.systemd import SystemdNotifier, WatchdogHeartbeat
from avq.types import Detections, Frame, LatencyBudget, Published, StageTimes
from avq.web import LiveState
from avq.web.server import open_site
from tests.daemon.daemon_kit import null_parts


def turns(count: int) -> list[tuple[Frame, FrameResult]]:
    """Frames of one 1280x720 camera with 20 boxes and the stage times of a busy machine."""
    rng = np.random.default_rng(4)
    boxes = rng.uniform(0, 700, (20, 4)).astype(np.float32)
    pixels = np.zeros((720, 1280, 3), np.uint8)
    made = []
    for seq in range(count):
        spent = [int(ns) for ns in rng.gamma(3, 2e6, 4)]
        seen = Detections(boxes, np.full(20, 0.5, np.float32), np.zeros(20, np.int64), "front", seq, seq)
        published = Published(seen, sum(spent), 0, False, "normal", "digest")
        made.append((Frame("front", seq, seq, pixels), FrameResult(published, StageTimes(*spent), None)))
    return made


def measure(frames: list[tuple[Frame, FrameResult]], live_state: LiveState) -> dict[str, np.ndarray]:
    """Microseconds per frame of each part."""
    metrics, judge = Metrics(), LatencyJudge(LatencyBudget(50_000_000))
    pipeline = Pipeline(null_parts(), SystemClock(), judge.budget, Publisher([]))
    heartbeat, memory = WatchdogHeartbeat(SystemdNotifier("@nobody", watchdog_s=2.0)), MemoryWatch(dict)
    rows: dict[str, list[int]] = {
        "histograms and verdict": [],
        "frame_rate, life, memory": [],
        "live_state": [],
    }
    for frame, turn in frames:
        t0 = time.perf_counter_ns()
        judge.judge(turn.published.age_ns)
        metrics.record(turn.times, turn.published.age_ns)
        t1 = time.perf_counter_ns()
        pipeline.frame_rate.on_frame(frame.camera, frame.seq, frame.t_capture_ns)
        heartbeat.on_frame(pipeline)
        memory.sample()
        t2 = time.perf_counter_ns()
        live_state.on_tick()
        live_state.on_frame(frame, turn)
        t3 = time.perf_counter_ns()
        rows["histograms and verdict"].append(t1 - t0)
        rows["frame_rate, life, memory"].append(t2 - t1)
        rows["live_state"].append(t3 - t2)
        time.sleep(0)
    parts = {name: np.array(spent) / 1e3 for name, spent in rows.items()}
    return {**parts, "all": sum(parts.values(), np.zeros(len(frames)))}


def report(title: str, parts: dict[str, np.ndarray]) -> None:
    print(f"\n{title:<26}{'p10 us':>10}{'p50 us':>10}{'p90 us':>10}{'p99 us':>10}")
    for name, spent in parts.items():
        print(f"{name:<26}" + "".join(f"{np.percentile(spent, q):>10.1f}" for q in (10, 50, 90, 99)))


def while_scraped(address: str, work: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(0.2):
            httpx.get(address + "/metrics", timeout=30)
            httpx.get(address + "/status", timeout=30)

    reader = threading.Thread(target=scrape)
    reader.start()
    try:
        return work()
    finally:
        done.set()
        reader.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--cpu", type=int, default=0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.cpu})
    frames = turns(options.frames)
    measure(frames[:500], LiveState())
    report("nobody looks", measure(frames, LiveState()))
    with open_site("127.0.0.1", 0, None) as (live_state, address):
        report("scraped 5 times a second", while_scraped(address, lambda: measure(frames, live_state)))


if __name__ == "__main__":
    main()
