"""Calibration against onnxruntime's own, whole processes: time and peak memory, and memory against set size.

    python tests/bench/bench_calibration.py [--material DIR] [--rounds 1] [--skip-onnxruntime]

YOLOX-Nano 416, histograms of the inputs of all 113 convolutions, 100 COCO pictures, entropy thresholds. Every
run is a fresh process with an empty cache; peak memory is its VmHWM. onnxruntime calibrates inputs and outputs
of the convolutions, it offers no less: the row "same tensors" counts what it counts. The 400 pictures are seeded
crops and flips of the 100, so that no content counts twice.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

MATERIAL = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
SIZE_PX = 416


def calibrate_with_avq(material: Path, pictures: Path, workers: int, outputs_too: bool) -> dict[str, Any]:
    from avq.builder.calibrate.run import CalibrationRun, thresholds_table
    from avq.builder.calibrate.sharding import run_calibrate
    from avq.builder.frontend.fold_input import fold_input
    from avq.builder.graph.model import load_graph
    from avq.builder.pictures.dataset import open_set
    from avq.engines import engine_by_name
    from avq.types import PreprocessSpec

    spec = PreprocessSpec(
        width_px=SIZE_PX, height_px=SIZE_PX, anchor="top-left", channel_order="BGR", scale=1.0
    )
    model = fold_input(load_graph(material / "models" / "yolox_nano_416.onnx"), spec)
    convolutions = [node for node in model.view.nodes if node.op == "Conv"]
    tensors = {node.inputs[0] for node in convolutions}
    if outputs_too:
        tensors |= {node.outputs[0] for node in convolutions}
    items = open_set(pictures).items
    run = CalibrationRun(
        model.proto,
        sorted(tensors),
        items,
        spec,
        model.view.digest,
        engine_by_name("onnxruntime"),
        workers=workers,
    )
    with tempfile.TemporaryDirectory() as folder:
        answer = run_calibrate(run, Path(folder) / "c.avqcal")
        from avq.builder.calibrate import avqcal

        table = thresholds_table(avqcal.read(Path(folder) / "c.avqcal"), calibrator="entropy")
    return {"images": answer["images"], "tensors": len(table["tensors"]), "digest": answer["digest"]}


def calibrate_with_onnxruntime(material: Path, pictures: Path) -> dict[str, Any]:
    import cv2
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    def letterboxed(path: Path) -> Any:
        pixels = np.asarray(cv2.imread(str(path)))
        ratio = min(SIZE_PX / pixels.shape[0], SIZE_PX / pixels.shape[1])
        size = round(pixels.shape[1] * ratio), round(pixels.shape[0] * ratio)
        canvas = np.full((SIZE_PX, SIZE_PX, 3), 114, np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(pixels, size)
        return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], np.float32)

    class Reader:
        def __init__(self) -> None:
            self._paths = iter(sorted(pictures.glob("*.jpg")))

        def get_next(self) -> dict[str, Any] | None:
            path = next(self._paths, None)
            return None if path is None else {"images": letterboxed(path)}

    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            material / "models" / "yolox_nano_416.onnx",
            ["Conv"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Entropy,
        )
        reader = Reader()
        calibrator.collect_data(reader)
        ranges = calibrator.compute_data()
    return {"images": len(list(pictures.glob("*.jpg"))), "tensors": len(ranges.data), "digest": ""}


def write_varied(source: Path, folder: Path, copies: int) -> None:
    """``copies`` different crops of every picture, some flipped."""
    import cv2
    import numpy as np

    for number, path in enumerate(sorted(source.glob("*.jpg"))):
        pixels = np.asarray(cv2.imread(str(path)))
        for copy in range(copies):
            rng = np.random.default_rng([number, copy])
            height, width = pixels.shape[:2]
            top, left = (int(rng.integers(0, n // 8 + 1)) for n in (height, width))
            crop = pixels[top : height - height // 8 + top, left : width - width // 8 + left]
            cv2.imwrite(str(folder / f"{number:03d}_{copy}.jpg"), crop[:, :: -1 if copy % 2 else 1])


def peak_mb() -> float:
    from avq.process import peak_rss_mb

    return peak_rss_mb()


def child(options: argparse.Namespace) -> None:
    material, pictures = options.material, options.pictures
    if options.child == "onnxruntime":
        answer = calibrate_with_onnxruntime(material, pictures)
    else:
        answer = calibrate_with_avq(material, pictures, options.workers, options.child == "avq-all")
    print(json.dumps({**answer, "peak_mb": peak_mb()}))


def cpu_of_children() -> float:
    """Processor seconds of all children so far: what a busy machine changes least."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(kind: str, material: Path, pictures: Path, workers: int) -> dict[str, Any]:
    """One fresh process: seconds from its start to its end, and what it printed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--workers", str(workers)]
    command += ["--material", str(material), "--pictures", str(pictures)]
    begin, cpu = time.perf_counter(), cpu_of_children()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, cpu = time.perf_counter() - begin, cpu_of_children() - cpu
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"seconds": seconds, "cpu": cpu, **answer}


def measured_command(material: Path, pictures: Path) -> dict[str, Any]:
    """``avq calibrate`` as a user types it: preprocessing found on the way, counts written."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from avq.cli import main; main()", "calibrate"]
        command += [str(material / "models" / "yolox_nano_416.onnx"), "--data", str(pictures)]
        command += ["-o", str(Path(folder) / "c.avqcal"), "--json"]
        begin, cpu = time.perf_counter(), cpu_of_children()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        seconds, cpu = time.perf_counter() - begin, cpu_of_children() - cpu
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    answer = json.loads(done.stdout)
    return {**answer, "seconds": seconds, "cpu": cpu, "peak_mb": answer["peak_rss_mb"]}


def show(name: str, row: dict[str, Any], against: dict[str, Any] | None) -> None:
    ratios = ""
    if against is not None:
        ratios = "".join(f"{against[key] / row[key]:>7.1f}x" for key in ("seconds", "cpu"))
    numbers = f"{row['images']:>7}{row['tensors']:>9}{row['seconds']:>9.2f}{row['cpu']:>8.2f}"
    print(f"{name:22}{numbers}{row['peak_mb']:>9.0f}{ratios}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--skip-onnxruntime", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    pictures = options.material / "calibration" / "coco100"
    if not pictures.is_dir():
        print(f"no pictures at {pictures}: set AVQ_MATERIAL or give --material")
        return 3
    print(f"{'':22}{'images':>7}{'tensors':>9}{'wall s':>9}{'cpu s':>8}{'peak MB':>9}{'wall':>8}{'cpu':>8}")
    with tempfile.TemporaryDirectory() as folder:
        varied = Path(folder)
        write_varied(pictures, varied, 4)
        for _ in range(options.rounds):
            one_round(options, pictures, varied)
    return 0


def one_round(options: argparse.Namespace, pictures: Path, varied: Path) -> None:
    """Interleaved: avq before and after onnxruntime, so that a busy machine shows."""
    before = measured("avq", options.material, pictures, options.workers)
    command = measured_command(options.material, pictures)
    theirs = None
    if not options.skip_onnxruntime:
        theirs = measured("onnxruntime", options.material, pictures, options.workers)
        show("onnxruntime entropy", theirs, None)
    show("avq", before, theirs)
    show("avq calibrate", command, theirs)
    show("avq calibrate again", measured_command(options.material, pictures), theirs)
    show("avq again", measured("avq", options.material, pictures, options.workers), theirs)
    show("avq, one worker", measured("avq", options.material, pictures, 1), theirs)
    show("avq, same tensors", measured("avq-all", options.material, pictures, options.workers), theirs)
    many = measured("avq", options.material, varied, options.workers)
    show("avq, 400 pictures", many, None)
    print(f"peak memory, 400 against 100 pictures: {many['peak_mb'] / before['peak_mb']:.3f}")
    commanded = measured_command(options.material, varied)
    show("avq calibrate, 400", commanded, None)
    print(f"peak memory of the command, 400 against 100: {commanded['peak_mb'] / command['peak_mb']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
