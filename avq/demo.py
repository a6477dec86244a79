"""``avq demo``: the main job on built-in scenes, with the very functions a user's own model goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.atomic_file import atomic_write
from avq.builder import build
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import CalibrationSet, open_set
from avq.builder.report.summary import worst_pairs
from avq.bundle import open_bundle
from avq.commands.evaluate import ModelFlags, accuracy_on, detections_of, open_subject
from avq.daemon import RunOptions, RunSummary, serve_bundle
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

# The demo's page: one table, the clip, how long frames took, float beside INT8.

_SHOWN_PAIRS = 3


@dataclass(frozen=True)
class Served:
    """What the daemon published.

    Attributes:
        kept: frames with their boxes, for the clip.
        ages_ms: capture to publish, per published frame.
    """

    run: RunSummary
    kept: tuple[tuple[Frame, Detections], ...]
    ages_ms: tuple[float, ...]
    labels: tuple[str, ...]
    deadline_ms: float


def demo_page(
    rows: Sequence[Mapping[str, object]],
    outcome: Outcome,
    served: Served,
    pictures: CalibrationSet,
    floats: Sequence[Detections],
    found: Sequence[Detections],
    commands: Sequence[str],
) -> str:
    """One self-contained page beside its clip."""
    sections = [
        section("Float beside INT8", table(rows), lead="Drawn scenes neither model was made from."),
        section("The drive", video("drive.webm", "boxes of the INT8 bundle, as the daemon published them")),
        _serving(served),
        _pairs(pictures, floats, found, served.labels),
        section("Engines tried", table([trial.row() for trial in outcome.trials])),
        section("What to type next", code("\n".join(line.strip() for line in commands))),
    ]
    footer = (
        "Built-in scenes and detector: for the demo, the tests and the regression harness, not for roads."
    )
    return page("avq demo", headline_of(outcome.verdict), sections, footer=footer)


def _serving(served: Served) -> Html:
    run = served.run.as_json()
    deadline = Mark("deadline", served.deadline_ms, "bad")
    facts = [
        Fact("captured", str(run["captured"])),
        Fact("published", str(run["published"])),
        Fact("dropped", str(sum(run["dropped"].values())), note=_causes(run["dropped"])),
        Fact(
            "late",
            str(run["misses"]),
            note=f"over {served.deadline_ms:g} ms",
            tone="warn" if run["misses"] else "good",
        ),
        Fact("age p50", f"{run['p50_ms']:.1f} ms", note=f"p99 {run['p99_ms']:.1f} ms"),
    ]
    stages = [{"stage": name, **values} for name, values in run["stages"].items()]
    return section(
        "What the daemon did",
        key_figures(facts),
        strip(served.ages_ms, title="age of every published frame", limit=deadline),
        histogram(served.ages_ms, title="how often which age", marks=[deadline]),
        table(stages),
        lead="captured = published + dropped by cause + in flight, exactly.",
    )


def _causes(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in dropped.items()) or "none"


def _pairs(
    pictures: CalibrationSet, floats: Sequence[Detections], found: Sequence[Detections], labels: Sequence[str]
) -> Html:
    """The pictures on which the two disagree most."""
    blocks = worst_pairs(pictures.items, floats, found, labels, named="INT8", count=_SHOWN_PAIRS)
    return section("Where they disagree most", *blocks, lead="Held-out scenes, worst first.")


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

    def footer(self) -> list[str]:
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
    atomic_write(folder / "report.html", page)
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


# ``avq demo``: the whole story on built-in scenes.

__all__ = ["Result", "builtin_recipe", "run_demo"]
