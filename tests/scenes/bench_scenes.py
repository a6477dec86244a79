"""``python tests/scenes/bench_scenes.py``: frames per second of the renderer on one core."""

from __future__ import annotations

import time

import cv2

from avq.scenes import WEATHERS, Drive

FRAMES = 200


def main() -> None:
    cv2.setNumThreads(1)
    print(f"{'weather':8s}  frames/s at 640x360, one core, {FRAMES} frames of 3 drives")
    for weather in WEATHERS[1:]:
        spent_ns = 0
        for seed in range(3):
            drive = Drive(seed, weather)
            drive.frame(0)
            started_ns = time.perf_counter_ns()
            for index in range(FRAMES):
                drive.frame(index)
            spent_ns += time.perf_counter_ns() - started_ns
        print(f"{weather:8s}  {3 * FRAMES / (spent_ns * 1e-9):.0f}")


if __name__ == "__main__":
    main()
