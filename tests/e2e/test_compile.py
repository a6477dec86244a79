"""avq compile on the machine that serves: an engine that fails a check changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from avq.builder.encodings.trt_cache import parse_cache
from avq.builder.pictures.dataset import open_set, read_picture
from avq.bundle import FP16_BASELINE, GOLDEN, MODEL, OpenBundle, open_bundle
from avq.bundle.engines import ENGINES, engine_keys, engines_part
from avq.commands import compile_engine
from avq.commands.bundle import keygen, sign
from avq.commands.compile import CompileJson, compile_bundle
from avq.engines import engine_by_name
from avq.engines.cpu import instruction_set
from avq.engines.tensorrt_build import BuildOptions
from avq.errors import BundleError, RefusedError
from avq.hookspecs import Session
from avq.measure.detector import open_session
from avq.measure.latency import ProcessorClock, paired_latency
from avq.plugins import PluginHost
from avq.preprocess import Preprocessor
from avq.progress import Silent
from avq.types import CompiledEngine, EngineStatus, SessionOptions
from tests.conftest import ROOT
from tests.e2e.conftest import run_avq
from tests.e2e.resealing import resealed, wrong_golden
from tests.opset_23 import require_opset_23


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed here is onnxruntime in an engine's place, by processor time: others have no part in it."""
    monkeypatch.setattr(compile_engine, "ROUNDS", 5)
    monkeypatch.setattr(compile_engine, "paired_latency", partial(paired_latency, clock=ProcessorClock()))


@pytest.fixture
def bundle(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(built[0], tmp_path / "copy.avq"))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.slow
def test_a_bundle_is_made_ready_without_onnx_and_serves(bundle: Path, tmp_path: Path) -> None:
    for name in ("onnx", "scipy", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on a vehicle')\n")
    (bundle / "signature").write_bytes(b"of the old manifest")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from avq.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "compile", str(bundle), "--target", "onnxruntime", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["accepted"] is True and answer["engine"] == "onnxruntime" and answer["p50_ms"] > 0
    assert (answer["golden"]["frames"] > 0 and answer["golden"]["worst_sqnr_db"] is None) or (
        answer["golden"]["worst_sqnr_db"] >= answer["golden"]["limit_db"]
    )
    assert answer["signature"].startswith("dropped") and not (bundle / "signature").exists()
    manifest = open_bundle(bundle, isa=instruction_set()).manifest
    assert manifest.engine.name == "onnxruntime" and manifest.isa == instruction_set()
    assert [r for r in manifest.reasons if r.startswith("on target: ")]
    served = run_avq("run", "--bundle", bundle, "--source", "scene://drive", "--frames", "3", "--json")
    assert served.returncode == 0, served.stderr


@pytest.mark.slow
def test_compiling_again_says_it_once(bundle: Path) -> None:
    for _ in range(2):
        assert run_avq("compile", bundle).returncode == 0
    reasons = open_bundle(bundle).manifest.reasons
    assert len([r for r in reasons if r.startswith("on target: p50")]) == 1


@pytest.mark.slow
def test_another_folder_leaves_the_first_as_it_is(bundle: Path, tmp_path: Path) -> None:
    before = contents(bundle)
    assert run_avq("compile", bundle, "-o", tmp_path / "new.avq").returncode == 0
    assert contents(bundle) == before
    open_bundle(tmp_path / "new.avq").verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "flags", "code", "message"),
    [
        (lambda p: resealed(p, {GOLDEN: wrong_golden(p)}), (), 1, "dB (limit"),
        (lambda p: None, ("--budget-ms", "0.0001"), 1, "budget 0.0001 ms: over"),
        (lambda p: resealed(p, accepted=False, reasons=("lost boxes 9 %",)), (), 1, "lost boxes 9 %"),
        (lambda p: None, ("--target", "tensorflow"), 2, "did you mean 'tensorrt'"),
        (lambda p: (p / MODEL).write_bytes(b"x"), (), 2, "damaged or was replaced"),
        (lambda p: None, ("--trusted", "nobody.pub"), 2, "nobody.pub"),
    ],
    ids=["golden", "budget", "refused", "target", "damaged", "key"],
)
def test_what_is_not_proven_changes_nothing(
    bundle: Path, harm: Callable[[Path], object], flags: tuple[str, ...], code: int, message: str
) -> None:
    harm(bundle)
    before = contents(bundle)
    done = run_avq("compile", bundle, *flags)
    assert (done.returncode, message in " ".join((done.stdout + done.stderr).split())) == (code, True), done
    assert contents(bundle) == before
    assert [p for p in bundle.parent.iterdir() if "staging" in p.name] == []


def test_a_gpu_target_without_a_gpu_says_where_to_go(bundle: Path) -> None:
    if engine_by_name("tensorrt").status().can_run:
        pytest.skip("this machine has a card and TensorRT")
    done = run_avq("compile", bundle, "--target", "tensorrt")
    assert done.returncode == 3 and "on the machine that will serve" in done.stderr


class Card:
    """An engine compiled ahead, for a card that is really onnxruntime; ``slow`` ones answer each frame many times."""

    name = "tensorrt"
    float_precisions = ("f32",)
    compiles_on_target = True

    def __init__(self, architecture: str = "sm87", version: str = "10.3.0", *, slow: bool = False) -> None:
        self._architecture, self._version, self._slow = architecture, version, slow
        self.opened: list[str] = []
        self.compiled = 0
        self.options: object = None
        self.pictures: list[np.ndarray] = []

    def status(self) -> EngineStatus:
        return EngineStatus(self.name, True, self._version, True, True, "")

    def encodings(self) -> tuple[str, ...]:
        return ("s8", "u8", "asymmetric")

    def architecture(self) -> str:
        return self._architecture

    def compile(
        self, model: bytes, architecture: str, options: object, report: Callable[[str], None]
    ) -> CompiledEngine:
        report("half done")
        self.compiled += 1
        self.options = self.options or options  # the FP16 baseline has no options
        if isinstance(options, BuildOptions) and options.calibration is not None:
            calibration = options.calibration
            self.pictures = [] if calibration.cache else list(calibration.pictures)
            if not calibration.cache:
                calibration.keep(b"TRT-100300-EntropyCalibration2\nimages: 3c010a14\n")
        return CompiledEngine(architecture, model, 0.1, 3)

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def open_engine(self, engine: bytes, precision: str) -> Session:
        self.opened.append("engine")
        return self.open(engine, SessionOptions(optimise=b"/fp16" not in engine))

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        session = engine_by_name("onnxruntime").open(model, options)
        if self._slow and self.compiled == 1:  # the second is the twin
            return cast(Session, Slow(session))
        return session


class Slow:
    def __init__(self, session: Session) -> None:
        self._session, self.engine, self.precision = session, "tensorrt", "int8+f16"
        self.close = session.close

    def infer(self, tensor: np.ndarray) -> object:
        for _ in range(16):  # seen as slower whatever else runs on the machine
            answer = self._session.infer(tensor)
        return answer


class Host(PluginHost):
    def __init__(self, card: Card) -> None:
        super().__init__(allow=[])
        self._card = card

    def engines(self) -> Any:
        return (self._card,)


class Listening(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def compiled(
    bundle: Path,
    card: Card,
    report: Silent | None = None,
    *,
    output: Path | None = None,
    trusted: tuple[Path, ...] = (),
    **road: object,
) -> CompileJson:
    return compile_bundle(
        bundle,
        target="tensorrt",
        output=output,
        budget_ms=None,
        trusted=trusted,
        host=Host(card),
        **road,  # type: ignore[arg-type]
        report=report or Silent(),
    )


def opened_on(bundle: OpenBundle, card: Card) -> None:
    open_session(bundle, {"tensorrt": cast(Any, card)}).close()


@pytest.mark.slow
def test_engines_of_several_cards_live_in_one_bundle_until_the_release_changes(bundle: Path) -> None:
    resealed(bundle, accepted="pending-target", isa="")
    with pytest.raises(RefusedError, match="not been measured on its target"):
        open_bundle(bundle)
    card: Any = Card()
    assert compiled(bundle, card)["accepted"] and compiled(bundle, Card("sm110"))["architecture"] == "sm110"
    both = open_bundle(bundle, isa="another machine")
    assert both.has("engine.sm87") and both.has("engine.sm110") and both.manifest.isa == ""
    opened_on(both, card)
    assert card.opened == ["engine", "engine"]
    with pytest.raises(BundleError, match="no engine for this GPU") as refused:
        opened_on(both, Card("sm86"))
    assert "sm87" in refused.value.seen and "avq compile" in refused.value.fix
    assert compiled(bundle, Card("sm87", "10.16.0"))["accepted"]
    assert not open_bundle(bundle).has("engine.sm110")


def test_an_engine_is_taken_over_only_when_nothing_it_depends_on_has_changed(bundle: Path) -> None:
    resealed(bundle, accepted="pending-target", isa="")
    first, again, newer = Card(), Card(), Card(version="10.16.0")
    assert compiled(bundle, first)["build_s"] > 0 and first.compiled == 1
    answer = compiled(bundle, again)
    assert again.compiled == 0 and any("is reused" in reason for reason in answer["reasons"])
    report = Listening()
    compiled(bundle, newer, report)
    assert newer.compiled == 1 and any("version: 10.3.0, here 10.16.0" in line for line in report.lines)


@pytest.mark.parametrize("field", ["model", "version", "runtime", "architecture"])
def test_an_engine_that_does_not_fit_is_refused_with_the_field_that_differs(bundle: Path, field: str) -> None:
    compiled(bundle, Card())
    opened = open_bundle(bundle)
    keys = {
        name: msgspec.structs.replace(key, **{field: "another"}) for name, key in engine_keys(opened).items()
    }
    resealed(bundle, {ENGINES: engines_part(keys)})
    card: Any = Card()
    with pytest.raises(BundleError, match="is not for this machine") as refused:
        opened_on(open_bundle(bundle), card)
    assert f"{field}: another" in refused.value.seen and card.opened == []


def test_a_tampered_bundle_reaches_no_builder(bundle: Path, tmp_path: Path) -> None:
    keygen(tmp_path / "key")
    sign(bundle, tmp_path / "key")
    control, card = Card(), Card()
    trusted = (tmp_path / "key.pub",)
    assert compiled(bundle, control, output=tmp_path / "control.avq", trusted=trusted)["accepted"]
    touched = Path(shutil.copytree(bundle, tmp_path / "touched.avq"))
    (touched / MODEL).write_bytes(b"\0" + (touched / MODEL).read_bytes()[1:])
    with pytest.raises(BundleError, match="damaged or was replaced"):
        compiled(touched, card, trusted=trusted)
    resealed(bundle, {MODEL: b"another"})
    with pytest.raises(BundleError, match="is not signed"):
        compiled(bundle, card, trusted=trusted)
    assert (card.compiled, card.opened, control.compiled) == (0, [], 1)


@pytest.mark.slow
def test_an_engine_slower_than_its_fp16_twin_is_not_put_in_place(bundle: Path) -> None:
    resealed(bundle, {FP16_BASELINE: open_bundle(bundle).read(MODEL)}, accepted="pending-target")
    before = contents(bundle)
    answer = compiled(bundle, Card(slow=True))
    assert not answer["accepted"] and (answer["ratio"] or [])[1] > 1.02
    assert any("slower" in reason for reason in answer["reasons"]) and contents(bundle) == before


def test_a_bundle_is_built_where_there_is_no_tensorrt_and_compiled_where_there_is(
    pending: Path, tmp_path: Path
) -> None:
    require_opset_23()
    bundle = Path(shutil.copytree(pending, tmp_path / "copy.avq"))
    assert not engine_keys(open_bundle(bundle, allow_unaccepted=True))
    answer = compiled(bundle, Card())
    assert answer["ratio"] is not None, answer


def test_dla_takes_the_plans_ranges_and_what_it_cannot_do_runs_on_the_gpu(
    pending: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(pending, tmp_path / "copy.avq"))
    card: Any = Card()
    answer = compiled(bundle, card, dla_core=1)
    options = card.options
    assert isinstance(options, BuildOptions) and options.calibration is not None and options.dla_core == 1
    cache = parse_cache(options.calibration.cache)
    assert len(cache.entries) > 50 and {"int8", "fp16"} <= set(options.layer_precisions.values())
    assert card.pictures == [] and answer["road"] == "ranges of the plan, DLA 1"
    (key,) = (
        engine_keys(open_bundle(bundle, allow_unaccepted=True)).values() if answer["accepted"] else (None,)
    )
    assert key is None or key.flags == answer["road"]


def test_tensorrts_own_calibration_sees_the_daemons_pictures_once(
    pending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = sorted((ROOT / "calibration_data" / "road_scenes").rglob("*.jpg"))[:9]
    for file in source[:8]:
        shutil.copy(file, pictures)

    def calibrated(method: str) -> tuple[Card, list[str]]:
        bundle = Path(shutil.copytree(pending, tmp_path / "b" / str(len(list(tmp_path.glob("b/*"))))))
        card, report = Card(), Listening()
        compiled(bundle, card, report, calibrate=method, data=pictures)
        return card, report.lines

    first, messages = calibrated("entropy")
    spec = open_bundle(pending, allow_unaccepted=True).manifest.preprocess
    assert spec is not None
    expected = [Preprocessor(spec).prepare(read_picture(item)).tensor for item in open_set(pictures).items]
    assert len(first.pictures) == 8 and all(map(np.array_equal, first.pictures, expected))
    assert any("nothing is cached yet" in line for line in messages)
    again, messages = calibrated("entropy")
    assert again.pictures == [] and any("calibration cache read" in line for line in messages)
    other, messages = calibrated("minmax")
    assert len(other.pictures) == 8 and any("algorithm: entropy, here minmax" in line for line in messages)
    shutil.copy(source[8], pictures)
    more, messages = calibrated("entropy")
    assert len(more.pictures) == 9 and any("not used: images: " in line for line in messages)


@pytest.mark.slow
def test_roads_that_the_bundle_or_the_engine_has_not_are_refused(bundle: Path) -> None:
    for flags, message in ((("--dla-core", "0"), "--dla"), (("--calibrate", "entropy"), "--dla")):
        done = run_avq("compile", bundle, "--target", "onnxruntime", *flags)
        assert done.returncode == 2 and message in done.stderr
