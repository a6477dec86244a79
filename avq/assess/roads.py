"""Which way a model takes to an engine: its own types, or, with TensorRT 10, ranges from a calibrator and DLA."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avq import __version__
from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture
from avq.bundle import IMPLICIT, IMPLICIT_CACHE, IMPLICIT_PRECISIONS, MODEL, OpenBundle
from avq.engines.cache import Kept, cache_folder
from avq.engines.tensorrt_build import BuildOptions, Calibration
from avq.errors import RequestError
from avq.hookspecs import Engine
from avq.preprocess import Preprocessor, spec_to_json
from avq.progress import Reporter
from avq.types import U8, PreprocessSpec

Method = Literal["entropy", "minmax"]


@dataclass(frozen=True)
class Road:
    """What is built, and how.

    Attributes:
        options: None takes the file's own types.
        flags: the same for a key; '' for the file's own types.
    """

    model: bytes
    options: BuildOptions | None = None
    flags: str = ""


def road_of(
    bundle: OpenBundle,
    engine: Engine,
    *,
    calibrate: Method | None,
    dla_core: int | None,
    data: Path | None,
    report: Reporter,
) -> Road:
    """The road that was asked for.

    Args:
        calibrate: let TensorRT 10 calibrate itself on the pictures in ``data``.
        dla_core: with the ranges of the bundle's own plan, unless ``calibrate`` says otherwise.

    Raises:
        RequestError: the bundle has no parts for it, or pictures are missing.
    """
    if calibrate is None and dla_core is None:
        return Road(bundle.read(MODEL))
    if not bundle.has(IMPLICIT):
        raise RequestError(
            f"the bundle {bundle.path} was built for Q/DQ alone",
            seen=f"no part '{IMPLICIT}'",
            fix="build it again with --dla, which adds what DLA and TensorRT 10's own calibration take",
        )
    precisions: dict[str, str] = json.loads(bundle.read(IMPLICIT_PRECISIONS))
    calibration = (
        Calibration(cache=bundle.read(IMPLICIT_CACHE))
        if calibrate is None
        else _own_calibration(bundle, engine, calibrate, data, report)
    )
    options = BuildOptions(calibration=calibration, layer_precisions=precisions, dla_core=dla_core)
    by = f"calibrated by {calibrate}" if calibrate else "ranges of the plan"
    return Road(bundle.read(IMPLICIT), options, by + (f", DLA {dla_core}" if dla_core is not None else ""))


def _own_calibration(
    bundle: OpenBundle, engine: Engine, method: Method, data: Path | None, report: Reporter
) -> Calibration:
    """TensorRT's calibrator, fed as the daemon feeds the engine; a cache of the very same is read instead."""
    spec = bundle.manifest.preprocess
    if data is None or spec is None:
        raise RequestError(
            "there are no pictures to calibrate with",
            seen="--data is missing" if data is None else "the bundle takes no pictures",
            fix=f"avq compile {bundle.path} --calibrate {method} --data FOLDER",
        )
    pictures = open_set(data, report)
    key = _calibration_key(bundle, engine, method, spec, pictures)
    store = Kept(cache_folder("tensorrt-calibration"))
    kept, why = store.get(key)
    report.message(f"calibration cache {'read' if kept is not None else 'not used'}: {why}")
    return Calibration(method, _inputs(pictures, spec), kept or b"", keep=lambda cache: store.put(key, cache))


def _calibration_key(
    bundle: OpenBundle, engine: Engine, method: Method, spec: PreprocessSpec, pictures: CalibrationSet
) -> dict[str, str]:
    images = hashlib.sha256("".join(sorted(item.sha256 for item in pictures.items)).encode())
    return {
        "model": bundle.manifest.parts[IMPLICIT].sha256,
        "preprocess": hashlib.sha256(json.dumps(spec_to_json(spec), sort_keys=True).encode()).hexdigest(),
        "images": images.hexdigest(),
        "algorithm": method,
        "runtime": f"{engine.name} {engine.status().version}",
        "architecture": str(getattr(engine, "architecture", str)()),
        "avq": __version__,
    }


def _inputs(pictures: CalibrationSet, spec: PreprocessSpec) -> Iterator[U8]:
    preprocessor = Preprocessor(spec)
    for item in pictures.items:
        yield preprocessor.prepare(read_picture(item)).tensor.copy()
