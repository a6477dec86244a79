"""Many replays, calibrations and plans over workers: the bits of one process, whatever happens to a worker."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from avq_mixed.sensitivity import measure
from avq_mixed.strategy import MixedOptions, MixedQuantizer
from click.testing import CliRunner

from avq.builder.calibrate.calibration import Calibration
from avq.builder.planning import ReferenceRun, make_plan
from avq.cli import cli
from avq.hookspecs import Workbench
from avq.parallel import WorkerPool
from avq.progress import Silent
from avq.replay.batch import replay_many
from avq.scenes import builtin_detector_path
from avq.toolbox import place
from avq.types import GraphView, QuantizationPlan
from tests.conftest import ROOT
from tests.e2e.conftest import CALIBRATION
from tests.parallel.ray_pool import KillsAWorker
from tests.replay.bundle_kit import int8_plan, known, write_real_bundle

DRIVES = [f"scene://drive?seed={seed}&weather=day&frames=8&size=320x180" for seed in range(6)]
OPTIONS = {
    "config": None, "timing": None, "policy": None, "frames": None, "baseline": None, "accept": False, "runs": 1,
    "tier": None,
}  # fmt: skip


def avq(*arguments: str | Path, code: int = 0) -> dict:  # type: ignore[type-arg]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_real_bundle(tmp_path_factory.mktemp("bundles") / "float.avq")


def many(bundle: Path, pool: WorkerPool, folder: Path | None = None, logs: list[str] = DRIVES) -> dict:  # type: ignore[type-arg]
    merged = replay_many(
        logs=logs, bundles=[bundle], pool=pool, report_folder=folder, report=Silent(), **OPTIONS
    )
    return dict(merged.summary())


def core(answer: dict) -> list[tuple]:  # type: ignore[type-arg]
    """What must not depend on who did it."""
    keys = ("log", "frames", "sha256", "decisions_sha256", "dropped", "misses", "modes", "boxes")
    return [tuple(row[key] for key in keys) for row in answer["replays"]]


@pytest.mark.slow
def test_ray_replays_to_the_bits_of_one_process_also_when_a_worker_is_killed(
    bundle: Any, ray_workers: Any
) -> None:
    serial = many(bundle, WorkerPool())
    assert serial["frames"] == 48 and len({row["sha256"] for row in serial["replays"]}) == 6
    with KillsAWorker() as accident:
        spread = many(bundle, ray_workers)
    assert accident.killed is not None
    assert core(spread) == core(serial) and spread["failed"] == []
    assert spread["sha256"] == serial["sha256"] and spread["decisions_sha256"] == serial["decisions_sha256"]


@pytest.mark.slow
def test_a_calibration_over_ray_is_the_file_of_one_process(ray_workers: Any, tmp_path: Path) -> None:
    model = builtin_detector_path()
    avq("calibrate", model, "--data", CALIBRATION, "-o", tmp_path / "one.avqcal")
    with KillsAWorker() as accident:
        avq("calibrate", model, "--data", CALIBRATION, "-o", tmp_path / "ray.avqcal", "--ray", "local")
    assert accident.killed is not None
    assert (tmp_path / "one.avqcal").read_bytes() == (tmp_path / "ray.avqcal").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.avqcal", "ray.avqcal"]


@pytest.mark.slow
def test_plans_are_judged_alike_by_workers(ray_workers: Any) -> None:
    it = known()
    reference = ReferenceRun(
        it.analysis.model.proto,
        it.request.reference,
        it.holdout.first(2),
        it.analysis.model.view.inputs[0].name,
    )
    here = reference.run(int8_plan())
    there = next(ray_workers.map(reference.run, [int8_plan()]))
    assert dict(there.sqnr_db) == dict(here.sqnr_db)
    for a, b in zip(here.detections or (), there.detections or (), strict=True):
        assert (
            a.boxes_xyxy_px.tobytes() == b.boxes_xyxy_px.tobytes()
            and a.scores.tobytes() == b.scores.tobytes()
        )


class Ranking(MixedQuantizer):
    """As far as ``mixed`` only judges, and times nothing: its calibrator, and what each group costs."""

    ranked: tuple[object, ...] = ()

    def plan(self, graph: GraphView, bench: Workbench, options: MixedOptions) -> QuantizationPlan:
        maps = self.maps(graph, bench, place(graph, bench.keep_float), options)
        self.ranked = (maps.plan(maps.all_int8()).digest, measure(maps, options.pictures, options.probes))
        return maps.plan(maps.all_float())


@pytest.mark.slow
def test_mixed_ranks_groups_alike_with_workers_also_when_one_is_killed(ray_workers: Any) -> None:
    it = known(ROOT / "tests" / "replicas" / "yolov8.onnx")

    def ranked(pool: WorkerPool) -> tuple[object, ...]:
        strategy = Ranking()
        options = MixedOptions(pictures=4, probes=12)
        request = replace(it.request, quantizer=strategy, options=options, pool=pool)
        calibration = Calibration(request, it.analysis, it.pictures.calibration, Silent())
        planned = make_plan(replace(it, request=request, calibration=calibration))
        return (*strategy.ranked, planned.notes)

    serial = ranked(WorkerPool())
    with KillsAWorker() as accident:
        assert ranked(ray_workers) == serial
    assert accident.killed is not None


def test_a_log_that_fails_is_a_row_and_the_others_go_on(bundle: Any, tmp_path: Path) -> None:
    answer = avq("replay", DRIVES[0], tmp_path / "none.mp4", DRIVES[1], "--bundle", bundle, code=1)
    assert [row["error"] is None for row in answer["replays"]] == [True, False, True]
    assert answer["failed"][0]["log"].endswith("none.mp4") and answer["frames"] == 16


@pytest.mark.slow
def test_an_interrupted_night_goes_on_where_it_stopped(bundle: Any, tmp_path: Path) -> None:
    night = tmp_path / "night"
    many(bundle, WorkerPool(), night, DRIVES[:2])
    first = {path: path.stat().st_mtime_ns for path in (night / "rows").iterdir()}
    answer = many(bundle, WorkerPool(), night, DRIVES[:3])
    second = {path: path.stat().st_mtime_ns for path in (night / "rows").iterdir()}
    assert len(first) == 2 and len(second) == 3 and first.items() <= second.items()
    assert core(answer) == core(many(bundle, WorkerPool(), None, DRIVES[:3]))
    page = (night / "report.html").read_text()
    assert "3 replays" in page and "none with differences" in page
    assert len(list(night.glob("*/report.html"))) == 3


@pytest.mark.slow
def test_changes_are_told_over_all_logs(bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)  # where references are never accepted
    refs = tmp_path / "refs"
    avq("replay", *DRIVES[:2], "--bundle", bundle, "--baseline", refs, "--accept", "--runs", "1")
    assert avq("replay", *DRIVES[:2], "--bundle", bundle, "--baseline", refs)["identical"] is True
    other = write_real_bundle(tmp_path / "int8.avq", int8_plan())
    answer = avq(
        "replay",
        *DRIVES[:2],
        "--bundle",
        bundle,
        "--bundle",
        other,
        "--baseline",
        refs,
        "--tier",
        "exact",
        code=1,
    )
    assert [row["yes"] for row in answer["replays"]][::2] == [True, True]
    assert len(answer["replays"]) == 4 and answer["identical"] is False


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--baseline", "ref.mcap"), "folder"),
        (("--bundle", "x.avq", "--baseline", "refs", "--accept"), "known to be correct"),
    ],
)
def test_wrong_requests_over_many_are_refused(bundle: Any, flags: Any, said: str) -> None:
    problem = avq("replay", *DRIVES[:2], "--bundle", bundle, *flags, code=2)["error"]
    assert said in problem["fix"]


def test_a_shard_is_not_spread(tmp_path: Path) -> None:
    flags = ("--data", CALIBRATION, "--shard", "0/2", "--ray", "local", "-o", tmp_path / "x.avqcal")
    assert "--shard" in avq("calibrate", builtin_detector_path(), *flags, code=2)["error"]["seen"]


@pytest.mark.slow
def test_kept_shards_of_another_set_are_counted_anew(tmp_path: Path) -> None:
    """What an interrupted calibration left is used only where it fits."""
    from avq.builder.calibrate import avqcal
    from avq.builder.calibrate.calibration import calibration_run
    from avq.builder.calibrate.sharding import spread
    from avq.builder.pictures.dataset import open_set
    from avq.toolbox import calibration_tensors

    it, pictures = known(), open_set(CALIBRATION)
    tensors = calibration_tensors(it.analysis.model.view)[:2]

    def run(items: Any) -> Any:
        made = calibration_run(it.request, it.analysis, pictures, tensors, Silent())
        made.items = items
        return made

    keep = tmp_path / "shards"
    whole = spread(run(pictures.items[:8]), WorkerPool(), keep)
    again = run(pictures.items[:8])
    (keep / "2.avqcal").write_bytes(b"cut off")
    assert spread(again, WorkerPool(), keep) == whole and again.resumed == 6 and again.inferences == 2
    other = run(pictures.items[8:16])
    assert spread(other, WorkerPool(), keep) == run(pictures.items[8:16]).run() and other.resumed == 0
    assert avqcal.merge([whole]).images == whole.images
    shutil.rmtree(keep)
