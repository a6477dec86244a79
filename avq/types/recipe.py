"""The request for one build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

TARGETS = ("cpu", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
#: One of TARGETS, or the name of an engine that a plugin brings.
Target = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The request of ``avq build``: from the command line, a TOML file, or both.

    Attributes:
        model: the float ONNX file.
        output: the bundle folder to write.
        data: folder of calibration pictures, or a set with index.csv.
        strategy: name of a registered quantizer, or "float".
        target: what the bundle must run on.
        options: the strategy's own options, validated by its model.
        option_folders: option -> folder of the file that named it, which paths in its value are relative to.
        budget_ms: largest p50 latency of the engine, milliseconds; None for no limit.
        max_drop: tolerated loss in percent: relative mAP with labels (default 2), else lost boxes (default 1).
        gate: False writes the bundle with accepted:false instead of refusing.
        judge_time: False accepts on accuracy alone, however long an inference takes.
        force: replace an accepted bundle of another model.
        labels: COCO json for pictures under ``data``.
        class_map: label category -> model classes that count as it.
        calibration: an .avqcal file to use instead of a calibration pass.
        decoder: head family by name, "none", or None to recognise it.
        preprocess: preset name or JSON file, or None to find it.
        classes: class-name file or preset, or None to read the model's metadata.
        threads: threads of the engine, in timing and in service.
        gpu_arch: compute capabilities for GPU targets, such as ("sm89",).
        dla: also write what DLA and TensorRT 10's own calibration take.
    """

    model: Path
    output: Path
    data: Path | None = None
    strategy: str = "static"
    target: Target = "cpu"
    options: Mapping[str, str] = field(default_factory=dict)
    option_folders: Mapping[str, Path] = field(default_factory=dict)
    budget_ms: float | None = None
    max_drop: float | None = None
    gate: bool = True
    judge_time: bool = True
    force: bool = False
    labels: Path | None = None
    class_map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    calibration: Path | None = None
    decoder: str | None = None
    preprocess: str | None = None
    classes: str | None = None
    threads: int = 1
    gpu_arch: tuple[str, ...] = ()
    dla: bool = False
