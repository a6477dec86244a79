"""The suites for authors: they pass what keeps its promises, name what is broken, and are a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from pydantic import BaseModel, ConfigDict

from avq.contract.workbench import check_strategy, on_workbench
from avq.errors import PluginError
from avq.scenes.dataset import write_labelled_set
from avq.toolbox import activation_point, place, weight_point
from avq.types import QuantizationPlan, QuantPoint, StatRequest
from tests.conftest import ROOT
from tests.decoders.head_replicas import yolov8

SMALL = ROOT / "tests" / "replicas" / "yolov6.onnx"


class NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


class OneLayer:
    """Quantizes the first operator that may be: the quickest honest strategy."""

    name, version, options = "one-layer", "1", NoOptions
    symmetric: bool | None = None

    def plan(self, graph: Any, bench: Any, options: Any) -> QuantizationPlan:
        first = place(graph, bench.keep_float)[0]
        assert first.weight is not None
        edge = first.activations[0]
        symmetric = bench.symmetric_only if self.symmetric is None else self.symmetric
        seen = bench.collect([StatRequest(edge.tensor)]).range(edge.tensor, "minmax", symmetric=symmetric)
        points = (
            activation_point(edge, seen, symmetric=symmetric),
            weight_point(first.weight, graph.constants[first.weight.tensor], first.weight_axis),
        )
        return QuantizationPlan(graph.digest, points, owner=self.name, owner_version=self.version)


class Crooked(OneLayer):
    symmetric = False


class Stumbling(OneLayer):
    def plan(self, graph: Any, bench: Any, options: Any) -> Any:
        return cast(dict[str, Any], {})["no such calibrator"]


class Unwritable(OneLayer):
    """A scale per channel, with more channels than the tensor has."""

    def plan(self, graph: Any, bench: Any, options: Any) -> Any:
        plan = super().plan(graph, bench, options)
        weight = plan.points[1]
        wide = QuantPoint(weight.edge, np.ones(999, np.float32), np.zeros(999, np.int64), axis=0)
        return replace(plan, points=(plan.points[0], wide))


def contract(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avq.contract", *map(str, arguments)]
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=900)


@pytest.mark.slow
def test_an_honest_strategy_passes_for_both_kinds_of_targets() -> None:
    kept = check_strategy(OneLayer())
    assert [one.target for one in kept] == ["cpu", "tensorrt"]
    assert [one.plan.symmetric for one in kept] == [False, True]
    assert all(one.score.fidelity is not None and one.score.fidelity.lost < 0.05 for one in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "target", "told"),
    [
        (Crooked(), "tensorrt", "the plan is symmetric where the target asks"),
        (Stumbling(), "cpu", "it fails with errors of avq only"),
        (Unwritable(), "cpu", "the plan can be written as a model"),
    ],
)
def test_a_broken_promise_is_named(strategy: Any, target: str, told: str) -> None:
    with pytest.raises(PluginError) as caught:
        check_strategy(strategy, targets=[target])
    assert told in caught.value.what
    assert "one-layer" in caught.value.what
    if isinstance(strategy, Stumbling):
        assert "KeyError" in caught.value.seen and "test_contract.py:" in caught.value.seen


@pytest.mark.slow
def test_the_workbench_is_real_and_answers_a_question_once() -> None:
    def ask(graph: Any, bench: Any) -> tuple[Any, ...]:
        plan = QuantizationPlan(graph.digest, owner="nobody", owner_version="1")
        return bench.error(plan), bench.latency(plan), bench.latency(plan), bench.keep_float

    score, first, again, kept = on_workbench(ask, model=SMALL)
    assert score.fidelity.lost == 0 and score.fidelity.boxes > 20
    assert first is again and first.p50_ms > 0
    assert kept and all(kept.values())


@pytest.mark.slow
def test_a_quick_look_says_what_the_reference_says() -> None:
    def ask(graph: Any, bench: Any) -> tuple[Any, Any]:
        plan = OneLayer().plan(graph, bench, NoOptions())
        whole = bench.error(plan)
        return whole, bench.error(plan, pictures=whole.fidelity.images - 1)

    whole, quick = on_workbench(ask)
    assert quick.fidelity.images == whole.fidelity.images - 1
    for name, noise_db in whole.sqnr_db.items():
        assert quick.sqnr_db[name] == pytest.approx(noise_db, abs=3.0)  # one of few pictures less
        assert noise_db < 60


@pytest.mark.slow
def test_the_command_passes_a_built_in_strategy(tmp_path: Path) -> None:
    write_labelled_set(tmp_path / "scenes", seeds=range(7_100_000, 7_100_016))
    done = contract(
        "--quantizer", "static", "--option", "calibrator=minmax", "--option", "depthwise=int8", "--json",
        "--model", SMALL, "--data", tmp_path / "scenes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["keeps_its_contract"] is True
    assert answer["plans"]["tensorrt"]["int8_nodes"] > 10


BROKEN = """
from pydantic import BaseModel
from avq import hookimpl
from avq.types import QuantizationPlan

class Careless:
    name, version = "careless", "1"
    class options(BaseModel):
        pass
    def plan(self, graph, bench, options):
        return QuantizationPlan("another graph", owner=self.name, owner_version=self.version)

class Dead:
    name = "dead"
    float_precisions = ("f32",)
    def encodings(self):
        return ()
    def status(self):
        from avq.types import EngineStatus
        return EngineStatus("living", True, "1", True, True, "")

@hookimpl
def avq_register_quantizers():
    return [Careless()]

@hookimpl
def avq_register_engines():
    return [Dead()]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (("--quantizer", "careless"), "the plan is bound to its graph"),
        (("--engine", "dead"), "status carries the engine's name"),
    ],
)
def test_the_command_answers_no_for_a_broken_plugin(tmp_path: Path, flags: Any, rule: str) -> None:
    (tmp_path / "broken_plugin.py").write_text(BROKEN)
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avq]\nbroken = broken_plugin\n")
    done = contract(*flags, path=tmp_path)
    assert done.returncode == 1, done.stderr
    assert rule in done.stderr


def test_the_command_checks_an_engine() -> None:
    done = contract("--engine", "onnxruntime")
    assert done.returncode == 0 and "computes_the_network" in done.stdout


def test_the_command_checks_a_decoder_on_a_model_of_its_family(tmp_path: Path) -> None:
    model = tmp_path / "head.onnx"
    onnx.save(yolov8(1, 3)[0].proto, str(model))
    done = contract("--decoder", "yolov8", "--model", model, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["classes"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ((), "--quantizer NAME"),
        (("--engine", "openvino", "--decoder", "yolox"), "--engine NAME"),
        (("--source", "ramp://1x1"), "did you mean"),
        (("--sink", "jsonk:x"), "jsonl, mcap"),
        (("--quantizer", "statik"), "did you mean 'static'?"),
        (("--quantizer", "static", "--option", "calibratr=mse"), "did you mean 'calibrator'?"),
        (("--engine", "openvin"), "did you mean 'openvino'?"),
        (("--decoder", "yolo"), "did you mean 'yolo"),
        (("--decoder", "yolox"), "--model"),
    ],
)
def test_a_wrong_request_names_the_right_one(flags: Any, fix: str) -> None:
    done = contract(*flags, "--json")
    assert done.returncode == 2
    assert fix in json.loads(done.stdout)["error"]["fix"]
