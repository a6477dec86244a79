"""A start that cannot surprise: golden answers first, and in a failed bundle's place only what was allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from avq.bundle import GOLDEN, MODEL, EngineUse, open_bundle
from avq.commands.bundle import keygen, sign
from avq.config import Camera, RunConfig, Security, WebConfig
from avq.config.run import Fallback
from avq.errors import AvqError, BundleError, MachineError
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.serve import serve
from tests.conftest import PRODUCTS_SATURATE
from tests.e2e.resealing import resealed, wrong_golden
from tests.opset_23 import require_opset_23


class Listening(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    warning = message


class Looking(Listening):
    """Opens the page when it hears what serves."""

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Any] = {}

    def message(self, text: str) -> None:
        super().message(text)
        if text.startswith("serving bundle"):
            address = next(line.removeprefix("page: ") for line in self.lines if line.startswith("page: "))
            with urlopen(f"{address}/events?only=status", timeout=30) as stream:
                lines = (line.decode() for line in stream)
                self.facts = next(json.loads(line[6:]) for line in lines if line.startswith("data: "))


@pytest.fixture
def good(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built[0], tmp_path / "good.avq"))


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """A sound bundle whose engine gives other answers than were accepted."""
    copy = Path(shutil.copytree(good, tmp_path / "bad.avq"))
    resealed(copy, {GOLDEN: wrong_golden(copy)})
    return copy


@pytest.fixture
def elsewhere(good: Path, tmp_path: Path) -> Path:
    """A sound bundle of an engine that this machine has not."""
    copy = Path(shutil.copytree(good, tmp_path / "elsewhere.avq"))
    use = msgspec.structs.replace(open_bundle(copy).manifest.engine, name="tensorrt", float_precision="f16")
    assert isinstance(use, EngineUse)
    resealed(copy, engine=use)
    return copy


def served(
    path: Path, security: Security | None = None, report: Listening | None = None, **fallback: object
) -> tuple[int, list[str]]:
    """Return the number of published frames and the messages."""
    report = report or Listening()
    config = RunConfig(
        bundle=path,
        cameras=(Camera(id="front", source="scene://drive?seed=3&size=320x192", policy="every"),),
        frames=2,
        fallback=Fallback(**fallback),
        security=security or Security(),
        web=WebConfig(port=0),
    )
    published = serve(config, PluginHost(), report).as_json()["published"]
    return published, report.lines


def test_a_bundle_serves_after_its_golden_answers(good: Path) -> None:
    published, messages = served(good)
    assert published == 2 and not [line for line in messages if "falling back" in line]


def test_other_answers_than_were_accepted_are_not_served(bad: Path) -> None:
    with pytest.raises(BundleError, match="does not reproduce the golden outputs"):
        served(bad)


def test_an_engine_that_is_not_here_is_not_replaced_unasked(elsewhere: Path, good: Path) -> None:
    with pytest.raises(MachineError, match="tensorrt"):
        served(elsewhere)


def test_the_previous_bundle_takes_over_loudly(bad: Path, good: Path) -> None:
    published, messages = served(bad, bundle=good)
    assert published == 2
    assert [line for line in messages if "falling back to" in line and str(good) in line and "golden" in line]
    assert [line for line in messages if open_bundle(good).digest[:12] in line]


def test_the_page_names_the_bundle_that_serves_not_the_one_that_should(bad: Path, good: Path) -> None:
    pytest.importorskip("avq.web.app", reason="the extra 'web' is not installed")
    report = Looking()
    served(bad, report=report, bundle=good)
    shown = report.facts["bundle"]
    assert (shown["name"], shown["digest"]) == ("good.avq", open_bundle(good).digest)


@pytest.mark.skipif(PRODUCTS_SATURATE, reason="onnxruntime and openvino differ where INT8 products saturate")
def test_the_bundles_own_model_runs_on_onnxruntime_when_that_is_allowed(elsewhere: Path, bad: Path) -> None:
    published, messages = served(elsewhere, bundle=bad, onnxruntime=True)
    assert published == 2
    assert [line for line in messages if "does not start either" in line]
    assert [line for line in messages if "falling back to" in line and "onnxruntime" in line]


def test_a_bundle_for_a_gpu_serves_on_the_cpu_when_the_gpu_is_gone(pending: Path, tmp_path: Path) -> None:
    require_opset_23()
    bundle = Path(shutil.copytree(pending, tmp_path / "gpu.avq"))
    resealed(bundle, accepted=True)
    published, messages = served(bundle, onnxruntime=True)
    assert published == 2 and [line for line in messages if "falling back to" in line]


def test_wrong_answers_are_wrong_on_onnxruntime_too(bad: Path) -> None:
    with pytest.raises(BundleError, match="does not reproduce"):
        served(bad, onnxruntime=True)


def test_what_takes_over_must_be_signed_too(bad: Path, good: Path, tmp_path: Path) -> None:
    keygen(tmp_path / "key")
    sign(bad, tmp_path / "key")
    security = Security(require_signature=True, trusted_keys=(tmp_path / "key.pub",))
    with pytest.raises(AvqError, match="does not reproduce"):
        served(bad, security, bundle=good)
    sign(good, tmp_path / "key")
    assert served(bad, security, bundle=good)[0] == 2
    (good / MODEL).write_bytes(b"touched")
    with pytest.raises(AvqError, match="does not reproduce"):
        served(bad, security, bundle=good, onnxruntime=True)
