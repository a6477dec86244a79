"""``avq demo``: build, evaluate and serve the built-in detector on built-in scenes, and write a report.

It calls the same functions as ``avq build``, ``avq eval`` and ``avq run``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from avq.atomic_file import atomic_write, atomic_write_path
from avq.builder import build
from avq.builder.outcome import BuildJson, Outcome
from avq.builder.pictures.dataset import CalibrationSet, open_set
from avq.builder.report.summary import worst_pairs
from avq.bundle import open_bundle
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.daemon import RunOptions, RunSummary, serve_bundle
from avq.daemon.metrics import RunAnswer
from avq.daemon.modes import parts_of
from avq.engines.cpu import instruction_set
from avq.errors import RequestError
from avq.measure.detector import detector_of
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.render import (
    Fact,
    Html,
    Mark,
    code,
    draw_detections,
    headline_of,
    histogram,
    key_figures,
    page,
    section,
    strip,
    table,
    video,
    write_clip,
)
from avq.scenes import CLASS_NAMES, builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.sinks import CallbackSink, JsonLinesSink
from avq.types import Accuracy, Detections, Frame, LatencyBudget, Published, Recipe

FPS = 30
DEADLINE_MS = 50
CAMERA = f"scene://drive?seed=7&fps={FPS}&size=640x360"
HELD_OUT_SEEDS = range(3_000_000, 3_000_150)
CALIBRATION_SEEDS = range(2_000_000, 2_000_064)
#: The codec takes about 58 kB per frame: every second frame keeps the clip small and the motion readable.
CLIP_EVERY = 2
#: At network resolution (half of 640x360) boxes under 16 px are noise to this detector.
IGNORE_BELOW_PX = 32
#: Pictures with the largest disagreement in the report.
_MAX_PAIRS = 3


@dataclass(frozen=True)
class DemoRun:
    """Result of serving the built-in camera.

    Attributes:
        summary: counters and latencies of the run.
        clip: frames of the clip, with their detections.
        ages_ms: age at publication of every published frame, milliseconds.
        labels: class names of the detector.
        deadline_ms: allowed age at publication.
    """

    summary: RunSummary
    clip: tuple[tuple[Frame, Detections], ...]
    ages_ms: tuple[float, ...]
    labels: tuple[str, ...]
    deadline_ms: float


def demo_page(
    rows: Sequence[Mapping[str, object]],
    outcome: Outcome,
    run: DemoRun,
    pictures: CalibrationSet,
    float_detections: Sequence[Detections],
    int8_detections: Sequence[Detections],
) -> str:
    """Return the report as one HTML page; it shows drive.webm from the same folder."""
    sections = [
        section(
            "Float and INT8", table(rows), lead="Drawn scenes that neither training nor calibration used."
        ),
        section("Drive", video("drive.webm", "published boxes of the INT8 bundle")),
        _serving_section(run),
        _disagreement_section(pictures, float_detections, int8_detections, run.labels),
        section("Engines tried", table([trial.row() for trial in outcome.trials])),
        section("Next commands", code("\n".join(line.strip() for line in own_commands()))),
    ]
    footer = "Built-in scenes and detector, for the demo and the tests only."
    return page("avq demo", headline_of(outcome.verdict), sections, footer=footer)


def _serving_section(run: DemoRun) -> Html:
    summary = run.summary.as_json()
    deadline = Mark("deadline", run.deadline_ms, "bad")
    facts = [
        Fact("captured", str(summary["captured"])),
        Fact("published", str(summary["published"])),
        Fact("dropped", str(sum(summary["dropped"].values())), note=_causes(summary["dropped"])),
        Fact(
            "late",
            str(summary["misses"]),
            note=f"over {run.deadline_ms:g} ms",
            tone="warn" if summary["misses"] else "good",
        ),
        Fact("age p50", f"{summary['p50_ms']:.1f} ms", note=f"p99 {summary['p99_ms']:.1f} ms"),
    ]
    stages = [{"stage": name, **values} for name, values in summary["stages"].items()]
    return section(
        "Serving",
        key_figures(facts),
        strip(run.ages_ms, title="age of every published frame", limit=deadline),
        histogram(run.ages_ms, title="distribution of ages", marks=[deadline]),
        table(stages),
        lead="captured = published + dropped by cause + in flight",
    )


def _causes(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in dropped.items()) or "none"


def _disagreement_section(
    pictures: CalibrationSet,
    float_detections: Sequence[Detections],
    int8_detections: Sequence[Detections],
    labels: Sequence[str],
) -> Html:
    blocks = worst_pairs(
        pictures.items, float_detections, int8_detections, labels, named="INT8", count=_MAX_PAIRS
    )
    return section("Largest disagreements", *blocks, lead="Held-out scenes, worst first.")


class DemoJson(TypedDict):
    """Object of ``avq demo --json``; ``eval`` holds ``map`` of "float" and "int8"."""

    folder: str
    report: str
    clip: str
    build: BuildJson
    eval: dict[str, dict[str, float]]
    run: RunAnswer


@dataclass(frozen=True)
class DemoResult:
    """Measurements of the demo, and the folder with its files.

    Attributes:
        folder: output folder.
        outcome: the build.
        float_accuracy: accuracy of the float model on held-out scenes.
        accuracy: accuracy of the INT8 bundle on held-out scenes.
        run: counters and latencies of serving.
        sizes_mb: file sizes of the float model and the INT8 model, in megabytes.
    """

    folder: Path
    outcome: Outcome
    float_accuracy: Accuracy
    accuracy: Accuracy
    run: RunSummary
    sizes_mb: tuple[float, float]

    def summary(self) -> DemoJson:
        """Return the object of ``avq demo --json``."""
        return {
            "folder": str(self.folder),
            "report": str(self.folder / "report.html"),
            "clip": str(self.folder / "drive.webm"),
            "build": self.outcome.summary(),
            "eval": {"float": {"map": self.float_accuracy.map}, "int8": {"map": self.accuracy.map}},
            "run": self.run.as_json(),
        }

    def rows(self) -> list[dict[str, object]]:
        """Return one row for the float model and one for the INT8 bundle."""
        latency, run = self.outcome.chosen.latency, self.run.as_json()
        float_trials = [
            t for t in self.outcome.trials if latency and t.candidate.label == latency.float_engine
        ]
        float_latency = float_trials[0].latency if float_trials else None
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
                "p50 ms": _ms(float_latency.p50_ms if float_latency else None),
                "p99 ms": _ms(float_latency.p99_ms if float_latency else None),
                "size MB": f"{self.sizes_mb[0]:.2f}",
                **dict.fromkeys(serving, ""),
            },
            {
                "model": "INT8 bundle",
                "engine": self.outcome.chosen.label,
                "mAP50-95": f"{self.accuracy.map:.4f}",
                "p50 ms": _ms(latency.p50_ms if latency else None),
                "p99 ms": _ms(latency.p99_ms if latency else None),
                "size MB": f"{self.sizes_mb[1]:.2f}",
                **serving,
            },
        ]

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        return [("Built-in detector on built-in scenes (drawn, not photographed)", self.rows())]

    def footer(self) -> list[str]:
        """Return the lines to print below the table."""
        return [
            f"report: {self.folder / 'report.html'}",
            f"clip:   {self.folder / 'drive.webm'}   (any browser plays it)",
            f"bundle: {self.outcome.folder}",
            "next, with your own model and camera:",
            *own_commands(),
        ]


def own_commands() -> list[str]:
    """Return the commands for the user's own model and camera."""
    return [
        "  avq build MODEL.onnx --data FOLDER_OF_PICTURES -o my.avq",
        "  avq run --bundle my.avq --source v4l2:///dev/video0 --deadline-ms 50 --log drive.mcap",
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def run_demo(folder: Path, *, frames: int, report: Reporter) -> DemoResult:
    """Build, evaluate, serve and report.

    Args:
        folder: folder for all outputs.
        frames: number of frames to serve.
        report: progress.

    Raises:
        RequestError: ``folder`` holds files that no demo wrote.
    """
    _require_demo_folder(folder)
    host = PluginHost()
    report.message("1/4 build: the built-in detector, static INT8, on any CPU engine")
    calibration = _calibration_data(folder)
    outcome = build(builtin_recipe(calibration, folder / "bundle"), host, report)
    report.message(f"2/4 evaluate: float against INT8 on {len(HELD_OUT_SEEDS)} held-out scenes")
    held_out = folder / "held_out"
    write_labelled_set(held_out, seeds=HELD_OUT_SEEDS, ignore_below_px=IGNORE_BELOW_PX)
    pictures = open_set(held_out)
    detections = {
        name: _detect(path, pictures, host, report)
        for name, path in (("float", builtin_detector_path()), ("INT8", outcome.folder))
    }
    truth = load_labels(held_out / "labels.json", class_map={}, class_names=CLASS_NAMES)
    accuracy = {name: accuracy_on(truth, pictures, boxes) for name, boxes in detections.items()}
    report.message(f"3/4 serve: {frames} frames of {CAMERA}, deadline {DEADLINE_MS} ms")
    run = _serve(outcome.folder, folder, frames, host, report)
    report.message("4/4 report")
    write_clip(folder / "drive.webm", _annotated(run), FPS / CLIP_EVERY)
    sizes_mb = tuple(_size_mb(p) for p in (builtin_detector_path(), outcome.folder / "model.onnx"))
    result = DemoResult(
        folder, outcome, accuracy["float"], accuracy["INT8"], run.summary, (sizes_mb[0], sizes_mb[1])
    )
    html = demo_page(result.rows(), outcome, run, pictures, detections["float"], detections["INT8"])
    atomic_write(folder / "report.html", html)
    return result


def builtin_recipe(calibration: Path, output: Path) -> Recipe:
    """Return the recipe of the built-in detector: static INT8, any CPU engine, judged by the labels of the set."""
    return Recipe(
        model=builtin_detector_path(),
        output=output,
        data=calibration,
        labels=calibration / "labels.json",
        strategy="static",
        target="cpu",
        judge_time=False,
    )


def _require_demo_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file", seen="a file", fix="give another folder with -o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "held_out").is_dir():
        raise RequestError(
            f"{folder} holds files that no demo wrote",
            seen=", ".join(sorted(p.name for p in folder.iterdir())[:3]),
            fix="give an empty or new folder with -o",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held_out").mkdir(exist_ok=True)


def _calibration_data(folder: Path) -> Path:
    """Return the set in the checkout; draw it where avq was installed without the checkout."""
    shipped = Path(__file__).resolve().parents[1] / "calibration_data" / "road_scenes"
    if (shipped / "index.csv").is_file():
        return shipped
    drawn = folder / "calibration"
    write_labelled_set(drawn, seeds=CALIBRATION_SEEDS, ignore_below_px=IGNORE_BELOW_PX)
    return drawn


def _detect(path: Path, pictures: CalibrationSet, host: PluginHost, report: Reporter) -> list[Detections]:
    detector = open_subject(path, pictures, ModelFlags(), host, report)
    return detections_of(detector, pictures, report, path.name)


def _serve(bundle_path: Path, folder: Path, frames: int, host: PluginHost, report: Reporter) -> DemoRun:
    """Run the daemon on the built-in camera, and collect ages and the frames of the clip."""
    bundle = open_bundle(bundle_path, allow_unaccepted=True, isa=instruction_set())
    engines = host.running_engines()
    detector = detector_of(bundle, engines)
    clip: list[tuple[Frame, Detections]] = []
    ages_ms: list[float] = []
    steps = report.track(range(frames + 1), "frames", frames)

    def collect(message: Published, frame: Frame | None) -> None:
        next(steps, None)
        ages_ms.append(message.age_ns / 1e6)
        if frame is not None and len(ages_ms) % CLIP_EVERY == 1:
            clip.append((frame, message.detections))

    try:
        with atomic_write_path(folder / "detections.jsonl") as lines:
            summary = serve_bundle(
                parts_of(bundle, detector),
                sources={"demo": CAMERA},
                sinks=[CallbackSink(collect), JsonLinesSink(lines.open("wb"), detector.class_names)],
                budget=LatencyBudget(DEADLINE_MS * 1_000_000),
                options=RunOptions(frames=frames),
            )
    finally:
        detector.close()
    return DemoRun(summary, tuple(clip), tuple(ages_ms), detector.class_names, DEADLINE_MS)


def _annotated(run: DemoRun) -> Iterator[Any]:
    for frame, detections in run.clip:
        yield draw_detections(frame.pixels, detections, run.labels, min_score=0.3)


def _size_mb(path: Path) -> float:
    return path.stat().st_size / 1e6


__all__ = ["DemoResult", "builtin_recipe", "run_demo"]
