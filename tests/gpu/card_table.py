"""Everything that needs a card, in one run of under eight minutes: ``python tests/gpu/card_table.py [-o FILE]``.

For every engine that runs here: the built-in detector is built, compiled and proven as a user would, then its FP32,
FP16 and INT8 engines are compared with onnxruntime on rendered roads and timed, with and without a CUDA graph, and
the whole way from camera to message. Exit code 3, and what is missing, where nothing can run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from avq.bundle import FP16_BASELINE, MODEL, OpenBundle, open_bundle  # noqa: E402
from avq.engines import engine_by_name  # noqa: E402
from avq.engines.cuda import describe_library, first_card, why_no_card  # noqa: E402
from avq.errors import AvqError  # noqa: E402
from avq.hookspecs import Session  # noqa: E402
from avq.measure.detector import open_detector  # noqa: E402
from avq.measure.fidelity import fidelity  # noqa: E402
from avq.measure.latency import paired_latency  # noqa: E402
from avq.scenes import builtin_detector_path  # noqa: E402
from avq.scenes.drive import Drive  # noqa: E402
from avq.types import SessionOptions  # noqa: E402

ENGINES = ("tensorrt", "tensorrt-rtx")
DATA = ROOT / "calibration_data" / "road_scenes"
PICTURES, ROUNDS, FRAMES = 24, 300, 300


def avq(*arguments: str | Path) -> dict[str, Any]:
    """One command, as a user types it; its --json answer."""
    command = [sys.executable, "-c", "from avq.cli import main; main()", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode not in (0, 1):
        raise SystemExit(f"avq {' '.join(map(str, arguments))}\n{done.stderr}")
    last: dict[str, Any] = json.loads(
        done.stdout.strip().splitlines()[-1] if "run" in arguments else done.stdout
    )
    return last


def rows_of(name: str, folder: Path) -> list[dict[str, Any]]:
    """One row per precision and per way to launch it."""
    bundle_path = folder / f"{name}.avq"
    avq(
        "build", builtin_detector_path(), "--data", DATA, "--strategy", "static", "--target", name,
        *(["--gpu-arch", _architecture()] if name == "tensorrt-rtx" else []), "-o", bundle_path,
    )  # fmt: skip
    compiled = avq("compile", bundle_path, "--target", name)
    print(f"{name} {compiled['version']}: {'; '.join(compiled['reasons'])}", file=sys.stderr)
    bundle = open_bundle(bundle_path, allow_unaccepted=True)
    float_model = folder / f"{name}-float.avq"
    avq(
        "build",
        builtin_detector_path(),
        "--data",
        DATA,
        "--strategy",
        "float",
        "-o",
        float_model,
        "--no-gate",
    )
    models = {
        "FP32": open_bundle(float_model, allow_unaccepted=True).read(MODEL),
        "FP16": bundle.read(FP16_BASELINE),
        "INT8": bundle.read(MODEL),
    }
    rows = list(_compared(name, bundle, models))
    run = avq(
        "run", "--bundle", bundle_path, "--source", "scene://drive?seed=5", "--every-frame",
        "--frames", str(FRAMES), "--allow-unaccepted",
    )  # fmt: skip
    end = {"what": "INT8, camera to message", "p50 ms": run["p50_ms"], "p99 ms": run["p99_ms"]}
    return [*rows, {"engine": name, **end}]


def _architecture() -> str:
    card = first_card()
    return card.architecture if card is not None else ""


def _compared(name: str, bundle: OpenBundle, models: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    manifest = bundle.manifest
    assert manifest.preprocess is not None and manifest.decoder is not None
    pictures = [frame.pixels for frame in _frames()]
    reference = engine_by_name("onnxruntime").open(models["FP32"], SessionOptions(threads=4))
    expected = _detect(reference, bundle, pictures)
    with _sessions(name, models) as sessions:
        tensor = np.zeros(manifest.input.shape, np.uint8)
        runs = {label: _runner(session, tensor) for label, session in sessions.items()}
        samples = paired_latency(runs, rounds=ROUNDS)
        for label, session in sessions.items():
            found = fidelity(expected, _detect(session, bundle, pictures), with_map=False)
            yield {
                "engine": name,
                "what": label,
                "runs in": session.precision,
                "lost %": round(100 * found.lost, 2),
                "score shift": round(found.confidence_shift, 4),
                "p50 ms": round(samples[label].p50_ms, 3),
                "p99 ms": round(samples[label].p99_ms, 3),
                "card ms": round(float(np.median(session.milliseconds_on_card(100))), 3),  # type: ignore[attr-defined]
                "graph": getattr(session, "why_no_graph", "") or "yes",
            }


@contextmanager
def _sessions(name: str, models: Mapping[str, bytes]) -> Iterator[dict[str, Session]]:
    engine: Any = engine_by_name(name)
    opened: dict[str, Session] = {}
    try:
        for label, model in models.items():
            data = engine.compile(model, engine.architecture()).data
            precision = {"FP32": "f32", "FP16": "f16", "INT8": "int8+f16"}[label]
            opened[label] = engine.open_engine(data, precision)
            if name == "tensorrt":
                opened[f"{label}, no graph"] = engine.open_engine(data, precision, graph=False)
        yield opened
    finally:
        for session in opened.values():
            session.close()


def _frames() -> list[Any]:
    drive = Drive(seed=11)
    return [drive.frame(index * 7) for index in range(PICTURES)]


def _detect(session: Session, bundle: OpenBundle, pictures: Sequence[Any]) -> list[Any]:
    manifest = bundle.manifest
    assert manifest.preprocess is not None and manifest.decoder is not None
    detector = open_detector(session, manifest.preprocess, manifest.decoder, manifest.class_names)
    return [detector.detect(pixels, score_threshold=0.01) for pixels in pictures]


def _runner(session: Session, tensor: Any) -> Any:
    return lambda: session.infer(tensor)


def validity_on_this_card() -> str:
    """What TensorRT for RTX says of an engine for another card: its own check, on a card it may not list."""
    if why_no_card() or not engine_by_name("tensorrt-rtx").status().available:
        return ""
    import tensorrt_rtx as trt

    from avq.contract.engine_suite import sample_model

    data = engine_by_name("tensorrt-rtx").compile(sample_model(), "sm89").data  # type: ignore[attr-defined]
    validity, diagnostics = trt.Runtime(trt.Logger()).get_engine_validity(data)
    card = first_card()
    return f"an engine for sm89 on {card}: {validity}, diagnostics {int(diagnostics):#x}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-o", "--output", type=Path, help="also write the rows there, as JSON")
    arguments = parser.parse_args()
    running = [name for name in ENGINES if engine_by_name(name).status().can_run]
    card = first_card()
    said = validity_on_this_card()
    if not running:
        print(f"card: {card.name if card else 'none'}; {said}")
        for name in ENGINES:
            print(f"{name}: {engine_by_name(name).status().why}")
        return 3
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="avq-gpu-") as folder:
        for name in running:
            try:
                rows += rows_of(name, Path(folder))
            except AvqError as error:
                rows.append({"engine": name, "what": f"FAILED: {error.what}", "runs in": error.seen})
    print(f"card: {card}; CUDA through {describe_library()}; {said}")
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"card": str(card), "rows": rows}, indent=1))
    return int(any("FAILED" in row["what"] or row.get("lost %", 0) > 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
