"""How fast a drive of a minute is replayed: by an engine that computes nothing, and by the built-in INT8 engine.

    python tests/bench/bench_replay.py [--bundle B] [--seconds 60]

The log is 30 frames a second at 640x360, JPEG in MCAP, drawn first. Bars: the null engine at 10x real time or
more on two cores; the INT8 engine busy for 80 % of the wall time or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec

from avq import hookimpl
from avq.bundle import GOLDEN, MODEL, EngineUse, open_bundle, staging_folder, write_bundle
from avq.config import recipe_from
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.recording import RecorderSink
from avq.replay import ReplayRequest, ReplayResult, replay
from avq.scenes import Drive, builtin_detector_path
from avq.types import Detections, Frame, Published, StageTimes
from tests.engines.null import NullEngine

ROOT = Path(__file__).resolve().parents[2]
FPS = 30


def record(path: Path, seconds: int) -> None:
    """A flight record of a drawn drive, times included. One picture in 15 is drawn: drawing is slow."""
    drive = Drive(seed=11, weather="day", width_px=640, height_px=360, fps=FPS)
    sink = RecorderSink(path, labels=())
    pixels = drive.frame(0).pixels
    for seq in range(seconds * FPS):
        if seq % 15 == 0:
            pixels = drive.frame(seq).pixels
        t_ns = round(seq * 1e9 / FPS)
        message = Published(Detections.none("front", seq, t_ns), 3_000_000, 0, False, "normal", "")
        sink.write_timing(message, StageTimes(500_000, 200_000, 2_000_000, 300_000))
        sink.write(message, Frame("front", seq, t_ns, pixels))
    sink.close()


def null_bundle(real: Path, folder: Path) -> tuple[Path, PluginHost]:
    """The same bundle on an engine that answers every picture with the golden outputs of the first one."""
    bundle = open_bundle(real, allow_unaccepted=True)
    outputs = {view.name: bundle.arrays(GOLDEN)[f"output_0:{view.name}"] for view in bundle.manifest.outputs}

    class Plugin:
        @hookimpl
        def avq_register_engines(self) -> list[NullEngine]:
            return [NullEngine(outputs)]

    manifest = msgspec.structs.replace(bundle.manifest, engine=EngineUse(name="null"), parts={})
    write_bundle(staging_folder(folder), folder, manifest, {MODEL: b"null"})
    return folder, PluginHost(extra={"null": Plugin()})


def row(name: str, result: ReplayResult, seconds: int) -> str:
    speed, share = seconds / result.seconds, result.engine_seconds / result.seconds
    return f"{name:<12} {result.frames:>6} {result.seconds:>8.2f} {speed:>10.1f}x {share:>10.0%}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="a bundle of the built-in detector; built when not given")
    parser.add_argument("--seconds", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle = asked.bundle or build(folder / "builtin.avq")
        record(folder / "drive.mcap", asked.seconds)
        null, host = null_bundle(bundle, folder / "null.avq")
        log = str(folder / "drive.mcap")
        print(f"{'engine':<12} {'frames':>6} {'seconds':>8} {'real time':>11} {'in engine':>10}")
        fast = replay(ReplayRequest(log, null), host=host)
        print(row("null", fast, asked.seconds))
        served = replay(ReplayRequest(log, bundle))
        print(row("built-in", served, asked.seconds))
    held = asked.seconds / fast.seconds >= 10 and served.engine_seconds / served.seconds >= 0.8
    return 0 if held else 1


def build(folder: Path) -> Path:
    from avq.builder import build as build_bundle

    data = ROOT / "calibration_data" / "road_scenes"
    recipe = recipe_from(None, {"model": builtin_detector_path(), "data": data, "output": folder})
    build_bundle(recipe, PluginHost(), Silent())
    return folder


if __name__ == "__main__":
    sys.exit(main())
