"""The calibration pass on a real runtime: the same bytes whatever the order, the cut, or the interruption."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.moments import moments
from avq.builder.calibrate.observe import observe
from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.calibrate.run import CalibrationRun, check_belongs, thresholds_table
from avq.builder.calibrate.sharding import run_calibrate
from avq.builder.frontend.fold_input import fold_input
from avq.builder.graph.model import load_graph
from avq.builder.pictures.dataset import CalibrationSet, Item, open_set, read_picture
from avq.engines import engine_by_name
from avq.errors import CalibrationError, DataError
from avq.preprocess import Preprocessor
from avq.types import CALIBRATORS, MomentRequest, PreprocessSpec, SessionOptions
from tests.builder.calibrate.calibration_case import DIGEST, SPEC, TENSORS, run_on, small_net, write_pictures

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[3]
PICTURES = 13


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    return open_set(write_pictures(tmp_path_factory.mktemp("pictures"), PICTURES))


@pytest.fixture(scope="module")
def whole(pictures: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one undisturbed run."""
    output = tmp_path_factory.mktemp("whole") / "whole.avqcal"
    run_calibrate(run_on(pictures.items, workers=1), output)
    return output


def test_it_counts_what_the_model_computes(pictures: CalibrationSet, whole: Path) -> None:
    session = engine_by_name("onnxruntime").open(
        observe(small_net(), ["relu", "silu", "narrow"], 200).model_of(0), SessionOptions()
    )
    preprocessor = Preprocessor(SPEC)
    expected = {name: Histogram() for name in TENSORS}
    for item in pictures.items:
        picture = preprocessor.prepare(read_picture(item)).tensor
        expected["picture"].add(picture)
        for name, values in session.infer(picture).items():
            expected[name].add(values)
    found = avqcal.read(whole)
    assert dict(found.histograms) == expected
    assert found.images == tuple(sorted(item.sha256 for item in pictures.items))
    assert found.histograms["relu"].minimum == 0.0
    assert found.histograms["relu"].zeros > 0


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_neither_order_nor_copies_nor_workers_change_a_byte(
    pictures: CalibrationSet, whole: Path, tmp_path: Path, workers: int
) -> None:
    items = [*pictures.items, *pictures.items[:3]]
    random.Random(workers).shuffle(items)
    answer = run_calibrate(run_on(tuple(items), workers=workers), tmp_path / "other.avqcal")
    assert (tmp_path / "other.avqcal").read_bytes() == whole.read_bytes()
    assert answer["digest"] == avqcal.read(whole).digest


@pytest.mark.parametrize("shards", range(1, 9))
def test_shards_merged_in_any_order_are_the_whole_run(
    pictures: CalibrationSet, whole: Path, tmp_path: Path, shards: int
) -> None:
    paths = [tmp_path / f"{index}.avqcal" for index in range(shards)]
    for index, path in enumerate(paths):
        run_calibrate(run_on(pictures.items, part=(index, shards), workers=1), path)
    random.Random(shards).shuffle(paths)
    avqcal.write(tmp_path / "merged.avqcal", avqcal.merge_paths(paths))
    assert (tmp_path / "merged.avqcal").read_bytes() == whole.read_bytes()


def test_merging_merged_shards_is_the_whole_run_too(pictures: CalibrationSet, whole: Path) -> None:
    parts = [run_on(pictures.items, part=(index, 4), workers=1).run() for index in range(4)]
    halves = [avqcal.merge(parts[2:]), avqcal.merge(parts[1::-1])]
    assert halves[0].shard is not None
    assert halves[0].shard.have == (2, 3)
    assert avqcal.merge(halves).digest == avqcal.read(whole).digest


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(
    pictures: CalibrationSet, whole: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    script = [
        sys.executable,
        "-m",
        "tests.builder.calibrate.calibration_case",
        pictures.folder,
        checkpoint,
        "9",
    ]
    killed = subprocess.run([str(part) for part in script], cwd=ROOT, check=False)
    assert killed.returncode == -9
    run = run_on(pictures.items, checkpoint=checkpoint)
    answer = run_calibrate(run, tmp_path / "resumed.avqcal")
    assert answer["resumed"] == 8
    assert answer["inferences"] == PICTURES - 8
    assert (tmp_path / "resumed.avqcal").read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_a_checkpoint_of_something_else_is_not_resumed(
    pictures: CalibrationSet, whole: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    foreign = avqcal.read(whole)
    for stale in (b"not a checkpoint", None):
        if stale is None:
            avqcal.write(checkpoint, replace(foreign, origin=replace(foreign.origin, graph="cd" * 32)))
        else:
            checkpoint.write_bytes(stale)
        run = run_on(pictures.items, checkpoint=checkpoint)
        run_calibrate(run, tmp_path / "fresh.avqcal")
        assert run.resumed == 0
        assert (tmp_path / "fresh.avqcal").read_bytes() == whole.read_bytes()


def test_more_outputs_than_memory_are_fetched_in_passes(pictures: CalibrationSet, whole: Path) -> None:
    observation = observe(small_net(), TENSORS, 0)
    assert observation.passes == (("narrow",), ("relu",), ("silu",))
    run = run_on(pictures.items, memory_limit_mb=0, workers=2)
    found = run.run()
    run.close()
    assert run.inferences == 3 * PICTURES
    expected = avqcal.read(whole)
    for name in TENSORS:
        assert found.histograms[name].count == expected.histograms[name].count
        assert found.histograms[name].maximum == pytest.approx(expected.histograms[name].maximum, rel=1e-5)
    with pytest.raises(CalibrationError, match="different settings"):
        avqcal.merge([found, expected])


def test_progress_counts_up_to_all_pictures(pictures: CalibrationSet) -> None:
    seen: list[tuple[int, int]] = []
    run_on(pictures.items, progress=lambda done, total: seen.append((done, total))).run()
    assert seen[0] == (0, PICTURES)
    assert seen[-1] == (PICTURES, PICTURES)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_all_pictures_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", 6)
    for name in ("001.png", "003.png"):
        data = bytearray((folder / name).read_bytes())
        data[12:29] = b"XXXX" + data[16:29]  # the header chunk's name
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match="2 of 6") as error:
        run_on(open_set(folder).items).run()
    assert "001.png" in error.value.seen
    assert "003.png" in error.value.seen


def test_wrong_requests_say_what_is_valid(pictures: CalibrationSet) -> None:
    with pytest.raises(CalibrationError, match="did you mean 'relu'"):
        observe(small_net(), ["relv"], 200)
    with pytest.raises(CalibrationError, match="'w1' is a constant"):
        observe(small_net(), ["w1"], 200)
    with pytest.raises(CalibrationError, match="no such shard"):
        run_on(pictures.items, part=(3, 3)).run()
    with pytest.raises(CalibrationError, match="no pictures"):
        run_on(()).run()


def test_thresholds_change_method_and_bits_without_inference(whole: Path) -> None:
    data = avqcal.read(whole)
    for calibrator in CALIBRATORS:
        table = thresholds_table(data, calibrator=calibrator)
        assert table["inferences"] == 0
        assert set(table["tensors"]) == set(TENSORS)
    row = thresholds_table(data, calibrator="minmax", symmetric=False)["tensors"]["silu"]
    assert (row["low"], row["high"]) == (row["min"], row["max"])
    assert row["scale"] == pytest.approx((row["high"] - row["low"]) / 255)
    fine = thresholds_table(data, calibrator="mse", bits=8)["tensors"]["silu"]
    coarse = thresholds_table(data, calibrator="mse", bits=4)["tensors"]["silu"]
    assert coarse["threshold"] <= fine["threshold"]
    assert coarse["scale"] > 10 * fine["scale"]


def test_counts_of_another_model_or_half_a_set_are_refused(pictures: CalibrationSet, whole: Path) -> None:
    data = avqcal.read(whole)
    asked = {"graph_digest": DIGEST, "spec": SPEC, "tensors": ["relu"], "name": "c.avqcal"}
    check_belongs(data, **asked)  # type: ignore[arg-type]
    for wrong in ({"graph_digest": "0" * 64}, {"spec": replace(SPEC, scale=1.0)}, {"tensors": ["gate"]}):
        with pytest.raises(CalibrationError, match="does not belong"):
            check_belongs(data, **{**asked, **wrong})  # type: ignore[arg-type]
    half = run_on(pictures.items, part=(1, 2)).run()
    with pytest.raises(CalibrationError, match="a part of its set"):
        check_belongs(half, **asked)  # type: ignore[arg-type]


def test_means_of_channels_are_the_means_and_do_not_depend_on_order(pictures: CalibrationSet) -> None:
    engine = engine_by_name("onnxruntime")
    tensors = ["silu", "relu", "picture"]
    asked = [MomentRequest(name) for name in tensors]
    means = moments(small_net(), None, asked, pictures.items, SPEC, engine=engine)
    again = moments(small_net(), None, asked, pictures.items[::-1], SPEC, engine=engine)
    assert all(np.array_equal(means[name], again[name]) for name in tensors)
    preprocessor = Preprocessor(SPEC)
    stacked = np.concatenate(
        [preprocessor.prepare(read_picture(item), copy=True).tensor for item in pictures.items]
    )
    np.testing.assert_allclose(means["picture"], stacked.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert means["relu"].shape == (6,)
    counted = run_on(pictures.items).run().histograms["relu"]
    centres = (np.arange(4096) + 0.5) * counted.width
    assert means["relu"].mean() == pytest.approx(
        float((counted.positive * centres).sum()) / counted.count, rel=1e-2
    )


@pytest.mark.slow
def test_a_real_detector_has_the_ranges_its_activations_must_have(material: Path) -> None:
    folder = material / "calibration" / "coco100"
    spec = PreprocessSpec(width_px=416, height_px=416, anchor="top-left", channel_order="BGR", scale=1.0)
    model = fold_input(load_graph(material / "models" / "yolox_nano_416.onnx"), spec)
    tensors = sorted({node.inputs[0] for node in model.view.nodes if node.op == "Conv"})
    items = sorted(folder.glob("*.jpg"))[:6]
    pictures = [Item(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in items]
    engine = engine_by_name("onnxruntime")
    with closing(CalibrationRun(model.proto, tensors, pictures, spec, model.view.digest, engine)) as run:
        data = run.run()
    assert len(data.histograms) == len(tensors)
    stats = HistogramStats(data.histograms)
    for name, histogram in data.histograms.items():
        shape = model.view.shape(name)
        assert shape is not None
        assert histogram.count == len(items) * math.prod(shape)
        # Every convolution reads pixels, a SiLU (its minimum is -0.2785) or sums and maxima of SiLUs.
        assert -4.0 < histogram.minimum <= 0.0
        entropy, top = stats.range(name, "entropy").threshold, stats.range(name, "minmax").threshold
        assert 0.0 < entropy <= top
        assert stats.range(name, "percentile", percentile=100.0).threshold == top
