"""``avq demo``: the main job on built-in scenes, with the very functions a user's own model goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.assess.evaluate import accuracy_on, detections_of
from avq.assess.opening import ModelFlags, open_subject
from avq.atomic_file import write_whole
from avq.builder import build
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import CalibrationSet, open_set
from avq.bundle import open_bundle
from avq.daemon import RunOptions, RunSummary, serve_bundle
from avq.daemon.opening import parts_of
from avq.demo.report import Served, demo_page
from avq.engines.cpu import instruction_set
from avq.errors import RequestError
from avq.measure.detector import detector_of
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.render import draw_detections, write_clip
from avq.scenes import CLASS_NAMES, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.sinks import CallbackSink, JsonLinesSink
from avq.types import Accuracy, Detections, Frame, LatencyBudget, Published, Recipe

FPS = 30
DEADLINE_MS = 50
CAMERA = f"scene://drive?seed=7&fps={FPS}&size=640x360"
HELD_OUT_SEEDS = range(3_000_000, 3_000_150)
CALIBRATION_SEEDS = range(2_000_000, 2_000_064)
# The codec takes about 58 kB per frame: every second frame keeps the clip small and the motion readable.
CLIP_EVERY = 2
# At network resolution (half of 640x360) boxes under 16 px are noise to this detector.
IGNORE_BELOW_PX = 32


@dataclass(frozen=True)
class Result:
    """What the demo measured, and where it lies."""

    folder: Path
    outcome: Outcome
    float_accuracy: Accuracy
    accuracy: Accuracy
    run: RunSummary
    sizes_mb: tuple[float, float]

    def summary(self) -> dict[str, Any]:
        build_summary = self.outcome.summary()
        return {
            "folder": str(self.folder),
            "report": str(self.folder / "report.html"),
            "clip": str(self.folder / "drive.webm"),
            "build": build_summary,
            "eval": {"float": {"map": self.float_accuracy.map}, "int8": {"map": self.accuracy.map}},
            "run": self.run.as_json(),
        }

    def rows(self) -> list[dict[str, object]]:
        """Float beside INT8: the one table of the demo."""
        latency, run = self.outcome.chosen.latency, self.run.as_json()
        floats = [t for t in self.outcome.trials if latency and t.candidate.label == latency.float_engine]
        reference = floats[0].latency if floats else None
        serving = {
            "served": run["published"],
            "dropped": sum(run["dropped"].values()),
            "budget misses": run["misses"],
        }
        return [
            {
                "model": "float",
                "engine": latency.float_engine if latency else "-",
                "mAP50-95": f"{self.float_accuracy.map:.4f}",
                "p50 ms": _ms(reference.p50_ms if reference else None),
                "p99 ms": _ms(reference.p99_ms if reference else None),
                "size MB": f"{self.sizes_mb[0]:.2f}",
                **dict.fromkeys(serving, ""),
            },
            {
                "model": "INT8 bundle",
                "engine": self.outcome.chosen.candidate.label,
                "mAP50-95": f"{self.accuracy.map:.4f}",
                "p50 ms": _ms(latency.p50_ms if latency else None),
                "p99 ms": _ms(latency.p99_ms if latency else None),
                "size MB": f"{self.sizes_mb[1]:.2f}",
                **serving,
            },
        ]

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        return [("The built-in detector on built-in scenes (drawn, not real roads)", self.rows())]

    def closing(self) -> list[str]:
        return [
            f"report: {self.folder / 'report.html'}",
            f"clip:   {self.folder / 'drive.webm'}   (any browser plays it)",
            f"bundle: {self.folder / 'bundle'}",
            "next, your own model and camera:",
            *own_commands(),
        ]


def own_commands() -> list[str]:
    """What to type for a model and a camera of one's own."""
    return [
        "  avq build MODEL.onnx --data FOLDER_OF_PICTURES -o my.avq",
        "  avq run --bundle my.avq --source v4l2:///dev/video0 --deadline-ms 50 --log drive.mcap",
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def run_demo(folder: Path, *, frames: int, report: Reporter) -> Result:
    """Build, evaluate, serve, report; everything below ``folder``.

    Raises RequestError when ``folder`` holds something that no demo wrote.
    """
    _require_ours(folder)
    host = PluginHost()
    report.message("1/4 build: the built-in detector, static INT8, on any CPU engine")
    calibration = _calibration_data(folder)
    outcome = build(builtin_recipe(calibration, folder / "bundle"), host, report)
    report.message(f"2/4 evaluate: float against INT8 on {len(HELD_OUT_SEEDS)} scenes neither has seen")
    held_out = folder / "held_out"
    write_labelled_set(held_out, seeds=HELD_OUT_SEEDS, ignore_below_px=IGNORE_BELOW_PX)
    pictures = open_set(held_out)
    boxes = {
        name: _boxes(path, pictures, host, report)
        for name, path in (("float", builtin_detector_path()), ("INT8", outcome.folder))
    }
    truth = load_labels(held_out / "labels.json", class_map={}, class_names=CLASS_NAMES)
    accuracy = {name: accuracy_on(truth, pictures, found) for name, found in boxes.items()}
    report.message(f"3/4 serve: {frames} frames of {CAMERA}, deadline {DEADLINE_MS} ms")
    served = _serve(outcome.folder, folder, frames, host, report)
    report.message("4/4 report")
    write_clip(folder / "drive.webm", _annotated(served), FPS / CLIP_EVERY)
    sizes_mb = tuple(_size_mb(p) for p in (builtin_detector_path(), outcome.folder / "model.onnx"))
    result = Result(
        folder, outcome, accuracy["float"], accuracy["INT8"], served.run, (sizes_mb[0], sizes_mb[1])
    )
    page = demo_page(result.rows(), outcome, served, pictures, boxes["float"], boxes["INT8"], own_commands())
    write_whole(folder / "report.html", page)
    return result


def builtin_recipe(calibration: Path, output: Path) -> Recipe:
    """The built-in detector as static INT8 for any CPU engine, judged by the set's own labels."""
    return Recipe(
        model=builtin_detector_path(),
        output=output,
        data=calibration,
        labels=calibration / "labels.json",
        strategy="static",
        target="cpu",
    )


def _require_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file", seen="a file", fix="choose another folder with -o")
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / "held_out").is_dir()
    if foreign:
        raise RequestError(
            f"{folder} holds other things; the demo does not write into it",
            seen=", ".join(sorted(p.name for p in folder.iterdir())[:3]),
            fix="choose an empty or new folder with -o",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held_out").mkdir(exist_ok=True)


def _calibration_data(folder: Path) -> Path:
    """The set of the checkout; drawn afresh where avq was installed without it."""
    shipped = Path(__file__).resolve().parents[1] / "calibration_data" / "road_scenes"
    if (shipped / "index.csv").is_file():
        return shipped
    drawn = folder / "calibration"
    write_labelled_set(drawn, seeds=CALIBRATION_SEEDS, ignore_below_px=IGNORE_BELOW_PX)
    return drawn


def _boxes(path: Path, pictures: CalibrationSet, host: PluginHost, report: Reporter) -> list[Detections]:
    detector = open_subject(path, pictures, ModelFlags(), host, report)
    return detections_of(detector, pictures, report, path.name)


def _serve(bundle_path: Path, folder: Path, frames: int, host: PluginHost, report: Reporter) -> Served:
    """Run the daemon on the built-in camera; keep messages, and pictures for the clip."""
    bundle = open_bundle(bundle_path, allow_unaccepted=True, isa=instruction_set())
    engines = host.running_engines()
    detector = detector_of(bundle, engines)
    kept: list[tuple[Frame, Detections]] = []
    ages_ms: list[float] = []
    steps = report.track(range(frames + 1), "frames", frames)

    def keep(message: Published, frame: Frame | None) -> None:
        next(steps, None)
        ages_ms.append(message.age_ns / 1e6)
        if frame is not None and len(ages_ms) % CLIP_EVERY == 1:
            kept.append((frame, message.detections))

    lines = (folder / "detections.jsonl").open("wb")
    try:
        summary = serve_bundle(
            parts_of(bundle, detector),
            sources={"demo": CAMERA},
            sinks=[CallbackSink(keep), JsonLinesSink(lines, detector.class_names)],
            budget=LatencyBudget(DEADLINE_MS * 1_000_000),
            options=RunOptions(frames=frames),
        )
    finally:
        detector.close()
    return Served(summary, tuple(kept), tuple(ages_ms), detector.class_names, DEADLINE_MS)


def _annotated(served: Served) -> Iterator[Any]:
    for frame, detections in served.kept:
        yield draw_detections(frame.pixels, detections, served.labels, min_score=0.3)


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6
