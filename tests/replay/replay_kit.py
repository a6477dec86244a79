"""Bundles on an engine without a network: real preprocessing and decoding around outputs that follow the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from avq import hookimpl
from avq.bundle import EngineUse, Manifest, StrategyUse, staging_folder, write_bundle
from avq.plugins import PluginHost
from avq.types import PreprocessSpec, RawOutputs, SessionOptions, TensorView
from tests.daemon.daemon_kit import LABELS, canned_output, yolov8_spec
from tests.engines.null import NullEngine, NullSession

Change = Callable[[np.ndarray], np.ndarray]


class SeeingEngine(NullEngine):
    """Boxes that move with the picture's brightness; ``model`` names a change of the outputs, or none."""

    def __init__(self, changes: Mapping[bytes, Change]) -> None:
        super().__init__()
        self._changes = changes

    def open(self, model: bytes | Path, options: SessionOptions) -> NullSession:
        return _SeeingSession(self._changes.get(bytes(model) if isinstance(model, bytes) else b""))


class _SeeingSession(NullSession):
    def __init__(self, change: Change | None) -> None:
        super().__init__({}, 0, "f32")
        self._change = change
        self._plain = canned_output(6)

    def infer(self, tensor: Any) -> RawOutputs:
        table = self._plain.copy()
        table[0, :2] += float(tensor.mean()) * 16.0 % 4.0  # no two frames alike
        table[0, 4:] *= 1.0 - float(tensor[0, 0].mean()) % 40.0 / 100.0
        return {"out": table if self._change is None else self._change(table)}


def null_host(changes: Mapping[bytes, Change] | None = None) -> PluginHost:
    class Plugin:
        @hookimpl
        def avq_register_engines(self) -> list[Any]:
            return [SeeingEngine(changes or {})]

    return PluginHost(extra={"seeing": Plugin()})


def null_bundle(folder: Path, *, p50_ms: float = 5.0, model: bytes = b"plain", **changes: Any) -> Path:
    """A bundle on that engine; ``changes`` are fields of its manifest."""
    manifest = Manifest(
        avq_version="0.1.0",
        created="2026-01-02T03:04:05Z",
        accepted=True,
        strategy=StrategyUse(name="float", owner="avq", version="0.1.0"),
        target="cpu",
        engine=EngineUse(name="null", version="1", precision="f32"),
        input=TensorView("images", "uint8", (1, 3, 64, 64)),
        outputs=(TensorView("out", "float32", (1, 6, 84)),),
        preprocess=PreprocessSpec(width_px=64, height_px=64),
        decoder=yolov8_spec(),
        class_names=LABELS,
        graph_digest="ab" * 32,
        metrics={"chosen": {"p50_ms": p50_ms}},
    )
    write_bundle(
        staging_folder(folder), folder, msgspec.structs.replace(manifest, **changes), {"model.onnx": model}
    )
    return folder
