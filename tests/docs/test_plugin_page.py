"""docs/plugins.md: every hook with its signature, when it is called, and an example that really runs.

Each example of the page becomes an importable module; the hook of each is then called by the real host.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from avq import hookspecs
from avq.builder import build
from avq.bundle import PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.manifest import render
from avq.bundle.plan import plan_from_parts
from avq.commands.doctor import examine
from avq.config import load_run
from avq.contract.__main__ import main as contract_command
from avq.contract.engine_suite import sample_answer, sample_model, sample_picture
from avq.errors import PluginError, RequestError
from avq.measure.detector import detector_of
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.scenes import builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.serve import serve
from avq.types import Recipe, SessionOptions
from tests.architecture.test_plugin_contract import optional_protocols
from tests.conftest import ROOT
from tests.e2e.conftest import CALIBRATION

PAGE = (ROOT / "docs" / "plugins.md").read_text()
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "avq_spec")]
SHOWN: dict[str, Callable[..., None]] = {}

Called = dict[str, list[dict[str, Any]]]


def shows(hook: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks the test that shows ``hook`` being called by the host."""

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        SHOWN[hook] = test
        return test

    return mark


def section(hook: str) -> str:
    found = re.search(rf"^## {hook}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/plugins.md has no section '## {hook}'"
    return found.group(1)


def blocks(hook: str) -> list[str]:
    """The section's Python: the signature, then the example."""
    return re.findall(r"```python\n(.*?)```", section(hook), flags=re.DOTALL)


def signature_of(hook: str) -> str:
    return hook + str(inspect.signature(getattr(hookspecs, hook))).replace("'", "")


class Recorded:
    """The page's example of one hook, with every call the host makes remembered."""

    def __init__(self, module: Any, called: Called) -> None:
        self.__name__ = module.__name__
        self.module = module
        for name, function in vars(module).items():
            if name in HOOKS:
                setattr(self, name, _recorded(function, called.setdefault(name, [])))


def _recorded(function: Callable[..., Any], calls: list[dict[str, Any]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*given: Any) -> Any:
        answer = function(*given)
        calls.append(
            {**dict(zip(inspect.signature(function).parameters, given, strict=True)), "answer": answer}
        )
        return answer

    return call


@pytest.fixture(scope="module")
def called() -> Called:
    return {}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, called: Called) -> Iterator[dict[str, Recorded]]:
    """Hook -> its example, importable here and in the processes that this one starts."""
    folder = tmp_path_factory.mktemp("examples")
    for hook in HOOKS:
        (folder / f"page_{hook}.py").write_text(blocks(hook)[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        yield {hook: Recorded(importlib.import_module(f"page_{hook}"), called) for hook in HOOKS}
        for hook in HOOKS:
            sys.modules.pop(f"page_{hook}", None)


@pytest.fixture(scope="module")
def host(examples: dict[str, Recorded]) -> PluginHost:
    """A host with all the page's plugins, as if they were installed."""
    return PluginHost(extra=examples)


@pytest.fixture(scope="module")
def built(host: PluginHost, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    recipe = Recipe(
        model=builtin_detector_path(),
        output=tmp_path_factory.mktemp("page") / "page.avq",
        data=CALIBRATION,
        strategy="roadworks-percentile",
        target="onnxruntime",
        options={"percentile": "99.9"},
        decoder="roadworks-corners",
        gate=False,
    )
    outcome = build(recipe, host, Silent())
    return outcome.folder, dict(outcome.summary())


@pytest.fixture(scope="module")
def run(
    built: tuple[Path, dict[str, Any]], host: PluginHost, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What serving the bundle gave: the summary, and the file that the page's sink wrote."""
    folder = tmp_path_factory.mktemp("run")
    newest, config = folder / "newest.json", folder / "run.toml"
    config.write_text(
        f'bundle = "{built[0]}"\nallow_unaccepted = true\n[budget]\ndeadline_ms = 0.001\n'
        '[[cameras]]\nid = "front"\nsource = "fog://35"\n'
        f'[[sinks]]\nuri = "newest:{newest}"\n'
    )
    return serve(load_run(config), host, Silent()), newest


# The page


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_its_signature_its_moment_and_an_example(hook: str) -> None:
    signature, example = blocks(hook)
    assert signature.strip() == signature_of(hook)
    moment = re.search(r"^\*\*Called\*\* (.*?)\n\n", section(hook), flags=re.MULTILINE | re.DOTALL)
    assert moment is not None and len(moment.group(1)) > 40, "say when it is called"
    assert f"@hookimpl\ndef {hook}(" in example


def test_the_page_describes_no_hook_that_does_not_exist() -> None:
    assert re.findall(r"^## (avq_\w+)", PAGE, flags=re.MULTILINE) == HOOKS


def test_every_hook_has_a_test_that_shows_it_called() -> None:
    assert set(SHOWN) == set(HOOKS)
    mine = vars(sys.modules[__name__])
    assert all(test.__name__.startswith("test_") and test.__name__ in mine for test in SHOWN.values())


@pytest.mark.parametrize("hook", HOOKS)
def test_examples_import_public_names_only(hook: str) -> None:
    modules = re.findall(r"^\s*(?:from|import) (avq[\w.]*)", blocks(hook)[1], flags=re.MULTILINE)
    assert modules and set(modules) <= {"avq", "avq.types", "avq.errors", "avq.toolbox"}


def test_the_contract_command_is_as_the_page_says() -> None:
    flags = set(re.findall(r"--\w+", re.search(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL).group(1)))  # type: ignore[union-attr]
    assert {"--quantizer", "--engine", "--decoder"} <= flags
    assert flags <= {name for option in contract_command.params for name in option.opts}
    (names,) = re.findall(r"```python\n((?:from avq\.contract.*\n)+)```", PAGE)
    exec(names, {})


# The hooks, called by the host


@shows("avq_register_quantizers")
def test_a_build_asks_the_registered_strategy(built: Any, called: Called) -> None:
    bundle, answer = built
    assert len(called["avq_register_quantizers"]) == 1
    assert answer["strategy"] == "roadworks-percentile" and answer["int8_mac_share"] > 0.5
    assert _plan(bundle).owner == "roadworks-percentile"


@shows("avq_register_engines")
def test_the_doctor_lists_the_registered_engine_and_it_computes(host: PluginHost, called: Called) -> None:
    (status,) = [e for e in examine(host=host)["engines"] if e["name"] == "opencv-dnn"]
    assert status["can_run"] and len(called["avq_register_engines"]) == 1
    (engine,) = [e for e in host.engines() if e.name == "opencv-dnn"]
    session = engine.open(sample_model(), SessionOptions())
    given = sample_picture(0)
    assert np.allclose(session.infer(given)["y"], sample_answer(given), rtol=1e-5)


@pytest.mark.slow
def test_a_build_is_made_for_and_served_by_a_registered_engine(
    examples: dict[str, Recorded], tmp_path: Path
) -> None:
    module = examples["avq_register_engines"].module
    host = PluginHost(extra={"engine": module})
    write_labelled_set(tmp_path / "pictures", seeds=range(4_200_000, 4_200_010))
    request: dict[str, Any] = {
        "data": tmp_path / "pictures",
        "strategy": "float",
        "target": "opencv-dnn",
        "gate": False,
    }
    built = build(Recipe(model=builtin_detector_path(), output=tmp_path / "b", **request), host, Silent())
    assert open_bundle(built.folder, allow_unaccepted=True).manifest.engine.name == "opencv-dnn"
    (tmp_path / "run.toml").write_text(
        f'bundle = "{built.folder}"\nallow_unaccepted = true\nframes = 3\n'
        '[[cameras]]\nid = "front"\nsource = "scene://drive?seed=3&fps=30"\n'
    )
    assert serve(load_run(tmp_path / "run.toml"), host, Silent()).as_json()["published"] == 3


@shows("avq_register_decoders")
def test_a_build_and_a_run_decode_with_the_registered_family(built: Any, run: Any, called: Called) -> None:
    bundle, answer = built
    assert len(called["avq_register_decoders"]) == 1
    decoder = open_bundle(bundle, allow_unaccepted=True).manifest.decoder
    assert decoder is not None and decoder.family == "roadworks-corners"
    assert answer["chosen"]["lost"] <= 0.05
    assert run[0].as_json()["published"] == 35


def test_a_bundle_names_the_missing_plugin_of_its_decoder(built: Any, examples: dict[str, Recorded]) -> None:
    bundle = open_bundle(built[0], allow_unaccepted=True)
    package = examples["avq_register_decoders"].__name__
    assert bundle.manifest.decoder_package == package
    engines = PluginHost(allow=[]).running_engines()
    with pytest.raises(RequestError) as caught:
        detector_of(bundle, engines)
    assert package in caught.value.seen and f"pip install {package}" in caught.value.fix
    assert b"decoder_package" in render(bundle.manifest)
    assert b"decoder_package" not in render(
        msgspec.structs.replace(bundle.manifest, decoder_package=msgspec.UNSET)
    )


@shows("avq_register_sources")
def test_a_run_reads_the_registered_source_in_its_capture_process(run: Any, called: Called) -> None:
    summary = run[0].as_json()
    assert len(called["avq_register_sources"]) == 1
    assert (summary["captured"], summary["published"], summary["dropped"]) == (35, 35, {})


@pytest.mark.parametrize(
    ("hook", "scheme"), [("avq_register_sources", "rtsp"), ("avq_register_sinks", "jsonl")]
)
def test_a_scheme_that_avq_has_is_not_taken_over(
    hook: str,
    scheme: str,
    examples: dict[str, Recorded],
    built: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = examples[hook].module
    brought = module.FogType if scheme == "rtsp" else module.NewestType
    monkeypatch.setattr(brought, "schemes", (scheme,))
    host = PluginHost(extra={name: example.module for name, example in examples.items()})
    (tmp_path / "run.toml").write_text(
        f'bundle = "{built[0]}"\nallow_unaccepted = true\n[[cameras]]\nid = "front"\nsource = "fog://1"\n'
    )
    with pytest.raises(PluginError, match=f"built-in .* scheme '{scheme}'"):
        serve(load_run(tmp_path / "run.toml"), host, Silent())


def test_a_bug_in_a_strategy_is_told_with_its_place(
    examples: dict[str, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = examples["avq_register_quantizers"].module
    monkeypatch.delattr(module, "place")
    write_labelled_set(tmp_path / "pictures", seeds=range(4_200_000, 4_200_008))
    request: dict[str, Any] = {"data": tmp_path / "pictures", "strategy": "roadworks-percentile"}
    with pytest.raises(PluginError) as caught:
        build(
            Recipe(model=builtin_detector_path(), output=tmp_path / "b", **request),
            PluginHost(extra={"page": module}),
            Silent(),
        )
    assert "roadworks-percentile" in caught.value.what
    assert "NameError" in caught.value.seen and "page_avq_register_quantizers.py:" in caught.value.seen
    assert not (tmp_path / "b").exists()


@shows("avq_register_sinks")
def test_a_run_writes_the_registered_sink(run: Any, called: Called) -> None:
    assert len(called["avq_register_sinks"]) == 1
    message = json.loads(run[1].read_text())
    assert (message["camera"], message["seq"]) == ("front", 34)


@shows("avq_keep_float")
def test_a_build_keeps_float_what_is_asked_for(built: Any, called: Called) -> None:
    (call,) = called["avq_keep_float"]
    (kept,) = call["answer"]
    quantized = {point.edge.node for point in _plan(built[0]).points}
    convolutions = {node.name for node in call["graph"].nodes if node.op == "Conv"}
    assert kept in convolutions - quantized and len(convolutions & quantized) > 10


@shows("avq_check_bundle")
def test_a_build_has_its_staged_bundle_checked(built: Any, called: Called) -> None:
    bundle, answer = built
    assert all(call["bundle"] != bundle for call in called["avq_check_bundle"]), (
        "published before it was checked"
    )
    assert any("info roadworks-size: the size of the model" in reason for reason in answer["reasons"])


@shows("avq_build_finished")
def test_a_build_tells_that_it_is_finished(built: Any, called: Called, examples: dict[str, Recorded]) -> None:
    bundle, answer = built
    (call,) = called["avq_build_finished"]
    assert call["bundle"] == bundle and call["report"] == answer
    (line,) = examples["avq_build_finished"].module.FINISHED
    assert line == f"page.avq: {answer['engine']}, accepted {answer['accepted']}"


@shows("avq_budget_missed")
def test_a_run_tells_that_the_budget_is_missed(
    run: Any, called: Called, examples: dict[str, Recorded]
) -> None:
    (call,) = called["avq_budget_missed"]
    assert set(call["event"]) == {"kind", "t_ns", "camera", "seq", "mode", "alert", "reason"}
    assert call["event"]["kind"] == "alert_raised"
    assert examples["avq_budget_missed"].module.MISSED[0].startswith("front at frame ")


def _plan(bundle: Path) -> Any:
    opened = open_bundle(bundle, allow_unaccepted=True)
    return plan_from_parts(opened.read(PLAN_JSON), opened.read(PLAN_ARRAYS))


def test_an_unknown_target_names_the_nearest_engine(host: PluginHost, tmp_path: Path) -> None:
    request: dict[str, Any] = {"data": tmp_path, "strategy": "float", "target": "opencv-dn"}
    with pytest.raises(RequestError, match=r"no target named(.|\n)*did you mean 'opencv-dnn'"):
        build(Recipe(model=builtin_detector_path(), output=tmp_path / "b", **request), host, Silent())


# The optional protocols


def test_every_optional_protocol_has_a_section_whose_example_has_it() -> None:
    """The examples build on those of the hooks; each defines a class with all members that it adds."""
    names: dict[str, Any] = {"SessionOptions": SessionOptions}
    for hook in HOOKS:
        exec(blocks(hook)[1], names)
    for protocol in optional_protocols():
        text = re.search(rf"^### {protocol.__name__}\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
        assert text is not None, f"docs/plugins.md has no section '### {protocol.__name__}'"
        members = {name for name in vars(protocol) if not name.startswith("_")}
        assert all(name in text.group(1) for name in members)
        (example,) = re.findall(r"```python\n(.*?)```", text.group(1), flags=re.DOTALL)
        exec(example, names)
        (shown,) = re.findall(r"^class (\w+)", example, flags=re.MULTILINE)
        given = set(dir(names[shown])) | set(getattr(names[shown], "model_fields", ()))
        assert members <= given, f"{shown} lacks {members - given}"
