"""Plugins as their authors ship them: installed, broken, clashing, misspelt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import onnx
import pytest
from pydantic import BaseModel, ConfigDict, FilePath

import avq
from avq import hookimpl
from avq.builder.graph.view import view_of
from avq.contract.quantizer_suite import check_quantizer
from avq.errors import PluginError, RequestError
from avq.plugins import PluginHost, option_paths, validate_options
from avq.types import Edge, Finding, QuantizationPlan, QuantPoint, Range, Recipe
from tests.builder.lower.lowering_nets import peaks, small_net, weight_point

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "outside-quantizer"
version = "3.2.1"
[project.entry-points.avq]
outside = "outside_quantizer"
[tool.setuptools]
py-modules = ["outside_quantizer"]
"""
MODULE = """
from pydantic import BaseModel, ConfigDict
from avq import hookimpl
from avq.types import QuantizationPlan

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    strength: float = 0.5
    layers: list[str] = []

class Nothing:
    name, version, options = "nothing", "3.2.1", Options
    def plan(self, graph, bench, options):
        return QuantizationPlan(graph.digest, owner=self.name, owner_version=self.version)

@hookimpl
def avq_register_quantizers():
    return [Nothing()]
"""


def _in_fresh_python(script: str, path: Path) -> str:
    paths = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outside package, built and installed by pip into a separate folder."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "outside_quantizer.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    quiet = ["--disable-pip-version-check", "--no-index", "--target", str(target), str(source)]
    subprocess.run([*pip, *quiet], check=True, capture_output=True)
    return target


def _dist(folder: Path, package: str, entry: str, code: str) -> Path:
    """An installed package as pip leaves it: a module and its metadata."""
    module = package.replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[avq]\n{entry} = {module}\n")
    return folder


@pytest.mark.slow
def test_an_installed_package_brings_a_strategy(installed: Path) -> None:
    script = (
        "import json\nfrom avq.plugins import PluginHost, validate_options\n"
        "host = PluginHost(allow=['outside'])\n"
        "quantizer = host.quantizer('nothing')\n"
        "options = validate_options(quantizer, {'strength': '0.25', 'layers': 'a, b'})\n"
        "row = next(r for r in host.listing() if r['name'] == 'outside')\n"
        "print(json.dumps([row, options.strength, options.layers]))\n"
    )
    row, strength, layers = json.loads(_in_fresh_python(script, installed))
    assert (row["package"], row["version"]) == ("outside-quantizer", "3.2.1")
    assert row["hooks"] == ["avq_register_quantizers"]
    assert row["brings"] == ["quantizer nothing"]
    assert row["owner"] == "outside-quantizer"
    options = [(option["option"], option["type"], option["default"]) for option in row["options"]]
    assert options == [("strength", "float", 0.5), ("layers", "list of str", [])]
    assert (strength, layers) == (0.25, ["a", "b"])


def test_names_outside_the_allow_list_stay_out(installed: Path) -> None:
    script = (
        "from avq.plugins import PluginHost\n"
        "assert 'nothing' in {q.name for q in PluginHost().quantizers()}\n"
        "assert 'nothing' not in {q.name for q in PluginHost(allow=['static']).quantizers()}\n"
    )
    _in_fresh_python(script, installed)


def test_a_broken_import_names_the_package(tmp_path: Path) -> None:
    _dist(tmp_path, "broken-plugin", "broken", "import surely_not_installed\n")
    script = (
        "from avq.errors import PluginError\nfrom avq.plugins import PluginHost\n"
        "try:\n    PluginHost()\nexcept PluginError as error:\n    print(error)\n"
    )
    message = _in_fresh_python(script, tmp_path)
    assert "broken-plugin 1.0" in message
    assert "surely_not_installed" in message
    assert "pip uninstall broken-plugin" in message


def test_a_doctor_survives_a_broken_plugin(tmp_path: Path) -> None:
    _dist(tmp_path, "broken-plugin", "broken", "raise RuntimeError('on purpose')\n")
    script = "import json\nfrom avq.commands.doctor import examine\nprint(json.dumps(examine()))\n"
    findings = json.loads(_in_fresh_python(script, tmp_path))
    assert "on purpose" in findings["messages"][0]
    assert {engine["name"] for engine in findings["engines"]} >= {"onnxruntime", "openvino"}


def test_a_name_that_is_not_installed_stops_with_the_installed_ones() -> None:
    with pytest.raises(PluginError, match=r"did you mean 'static'\?"):
        PluginHost(allow=["statik"])


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bits: int = 8
    clip: bool = True
    layers: tuple[str, ...] = ()
    seed: int | None = 3


class MinMax:
    """Min-max data and weights of every convolution: a strategy as an outside author writes it."""

    version, options = "1", Options

    def __init__(self, name: str = "outside-minmax") -> None:
        self.name = name

    def plan(self, graph: Any, bench: Any, options: Any) -> Any:
        convs = [n for n in graph.nodes if n.op == "Conv" and n.name not in bench.keep_float]
        stats = bench.collect([avq.types.StatRequest(n.inputs[0]) for n in convs])
        points = {}
        for node in convs:
            data, weight = Edge(node.inputs[0], node.name, 0), Edge(node.inputs[1])
            scale = np.float32(stats.range(data.tensor, "minmax").threshold / 127).reshape(())
            points[data] = QuantPoint(data, scale, np.zeros((), np.int64))
            points[weight] = weight_point(weight, graph.constants[weight.tensor], 0)
        return QuantizationPlan(
            graph.digest, tuple(points.values()), owner=self.name, owner_version=self.version
        )


class ExactStats:
    """Statistics measured by running the network."""

    def __init__(self, ranges: dict[str, tuple[float, float]]) -> None:
        self._ranges = ranges

    @property
    def tensors(self) -> Sequence[str]:
        return tuple(self._ranges)

    def range(self, tensor: Any, method: Any, **_: Any) -> Any:
        return Range(*self._ranges[tensor])


class Bench:
    symmetric_only = True

    def __init__(self, model: onnx.ModelProto) -> None:
        self.keep_float = {"boxes_conv": "the head"}
        self._model = model

    def collect(self, requests: Any) -> Any:
        return ExactStats(peaks(self._model, sorted({r.tensor for r in requests})))


def _plugin(**hooks: Any) -> SimpleNamespace:
    for name, function in hooks.items():
        function.__name__ = name
        hooks[name] = hookimpl(function)
    return SimpleNamespace(__name__="plugin", **hooks)


def test_the_quantizer_contract_passes_an_honest_strategy() -> None:
    net = small_net()
    plan = check_quantizer(MinMax(), view_of(net), cast(Any, Bench(net)), {"bits": "8"})
    assert {p.edge.node for p in plan.points if p.edge.node} == {"stem", "depth", "point"}


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("the same inputs give the same plan", lambda p, n: {"owner_version": str(n)}),
        ("bound to its graph", lambda p, n: {"graph_digest": "other"}),
        ("names its owner", lambda p, n: {"owner": ""}),
        ("edges are the graph's own", lambda p, n: {"ties": (frozenset({Edge("nowhere")}),)}),
        (
            "precisions are of known nodes",
            lambda p, n: {"precisions": {"x": avq.types.NodePrecision("int8", "r")}},
        ),
        (
            "nodes kept float stay float",
            lambda p, n: {"precisions": {"boxes_conv": avq.types.NodePrecision("int8", "why not")}},
        ),
        ("overrides fit", lambda p, n: {"overrides": {"stem.b": np.zeros(3, np.float32)}}),
    ],
)
def test_the_quantizer_contract_catches(rule: str, change: Any) -> None:
    from dataclasses import replace

    calls = iter(range(9))

    class Wrong(MinMax):
        def plan(self, graph: Any, bench: Any, options: Any) -> Any:
            plan = super().plan(graph, bench, options)
            return replace(plan, **change(plan, next(calls)))

    net = small_net()
    with pytest.raises(PluginError, match=rule):
        check_quantizer(Wrong(), view_of(net), cast(Any, Bench(net)))


def test_a_clash_names_both_owners() -> None:
    two = {
        "first": _plugin(avq_register_quantizers=lambda: [MinMax("mine")]),
        "second": _plugin(avq_register_quantizers=lambda: [MinMax("mine")]),
    }
    with pytest.raises(PluginError) as caught:
        PluginHost(extra=two).quantizers()
    assert "the quantizer 'mine'" in caught.value.what
    assert "'first'" in caught.value.seen
    assert "'second'" in caught.value.seen


def test_an_engine_with_a_built_in_name_is_refused() -> None:
    from tests.engines.null import NullEngine

    impostor = NullEngine()
    impostor.name = "openvino"
    host = PluginHost(extra={"impostor": _plugin(avq_register_engines=lambda: [impostor])})
    with pytest.raises(PluginError, match="two plugins bring the engine 'openvino'"):
        host.engines()


def test_a_decoder_with_a_built_in_name_is_refused() -> None:
    from avq.decoders import find_decoder

    host = PluginHost(extra={"impostor": _plugin(avq_register_decoders=lambda: [find_decoder("yolox")])})
    with pytest.raises(PluginError, match=r"'impostor'.* brings the decoder 'yolox', which avq has itself"):
        host.decoders()


def test_unknown_hooks_are_refused_with_the_nearest() -> None:
    plugin = _plugin(avq_register_quantisers=lambda: [])
    with pytest.raises(PluginError, match="did you mean 'avq_register_quantizers'"):
        PluginHost(extra={"typo": plugin})


def test_a_hook_with_unknown_arguments_is_refused() -> None:
    plugin = _plugin(avq_keep_float=lambda graph, weather: {})
    with pytest.raises(PluginError, match="does not fit a hook"):
        PluginHost(extra={"strange": plugin})


def test_keep_float_is_united_and_checked() -> None:
    net = small_net()
    recipe = Recipe(model=Path("m.onnx"), output=Path("b"))
    one = _plugin(avq_keep_float=lambda graph: {"stem": "first layer"})
    other = _plugin(avq_keep_float=lambda graph, recipe: {"stem": "small", "fc": f"for {recipe.target}"})
    host = PluginHost(extra={"a": one, "b": other})
    assert host.keep_float(view_of(net), recipe) == {"stem": "first layer; small", "fc": "for cpu"}
    wrong = _plugin(avq_keep_float=lambda graph: {"stam": "typo"})
    with pytest.raises(PluginError, match="did you mean 'stem'"):
        PluginHost(extra={"wrong": wrong}).keep_float(view_of(net), recipe)


def test_findings_of_all_plugins_are_collected() -> None:
    finding = Finding("error", "X1", "too large")
    host = PluginHost(extra={"strict": _plugin(avq_check_bundle=lambda bundle: [finding])})
    assert host.check_bundle(Path("b"), Recipe(model=Path("m"), output=Path("b"))) == [finding]


def test_one_failing_observer_stops_no_other() -> None:
    events: list[Any] = []

    def fails(event: Any) -> None:
        raise RuntimeError("on purpose")

    bad = _plugin(avq_budget_missed=fails)
    good = _plugin(avq_budget_missed=lambda event: events.append(event["misses"]))
    failed = PluginHost(extra={"a-bad": bad, "b-good": good}).budget_missed({"misses": 3})
    assert events == [3]
    assert len(failed) == 1
    assert "a-bad" in failed[0]
    assert "on purpose" in failed[0]


def test_options_from_text() -> None:
    options = validate_options(MinMax(), {"bits": "6", "clip": "false", "layers": "a,b", "seed": "none"})
    assert options == Options(bits=6, clip=False, layers=("a", "b"), seed=None)
    with pytest.raises(RequestError, match="did you mean 'bits'"):
        validate_options(MinMax(), {"bit": "6"})
    with pytest.raises(RequestError) as caught:
        validate_options(MinMax(), {"bits": "six"})
    assert caught.value.seen == "bits=six"


class Beside(BaseModel):
    """Options that name files in every way a model can declare them."""

    table: Path
    maybe: Path | None = None
    there: FilePath | None = None
    many: tuple[Path, ...] = ()
    either: Path | Literal["auto"] = "auto"
    text: str = ""


def test_paths_among_options_are_relative_to_the_file_that_named_them(tmp_path: Path) -> None:
    (tmp_path / "real.json").touch()
    reads = SimpleNamespace(name="reads", options=Beside)
    named = {"table": "a.json", "maybe": "/b.json", "there": "real.json", "many": "c.json, sub/d.json"}
    named |= {"either": "auto", "text": "a.json"}
    options = validate_options(reads, named, dict.fromkeys(named, tmp_path))
    assert options == Beside(
        table=tmp_path / "a.json",
        maybe=Path("/b.json"),
        there=tmp_path / "real.json",
        many=(tmp_path / "c.json", tmp_path / "sub" / "d.json"),
        text="a.json",
    )
    assert set(option_paths(options)) == {
        *(tmp_path / name for name in ("a.json", "real.json", "c.json", "sub/d.json")),
        Path("/b.json"),
    }
    flag = validate_options(reads, {"table": "a.json", "maybe": "none"}, {"maybe": tmp_path})
    assert flag == Beside(table=Path("a.json")), "a flag is relative to where it was typed"
    assert option_paths(None) == ()


def _wrapping(hook: str, wrapper: Callable[..., Any]) -> SimpleNamespace:
    wrapper.__name__ = hook
    return SimpleNamespace(__name__="wrapping", **{hook: hookimpl(wrapper=True)(wrapper)})


def test_a_wrapper_runs_around_every_implementation_of_its_hook() -> None:
    def renamed() -> Generator[None, Any, Any]:
        answers = yield
        return [[MinMax(f"{strategy.name}-wrapped") for strategy in answer] for answer in answers]

    host = PluginHost(
        allow=[],
        extra={
            "a": _plugin(avq_register_quantizers=lambda: [MinMax("one")]),
            "b": _plugin(avq_register_quantizers=lambda: [MinMax("two")]),
            "w": _wrapping("avq_register_quantizers", renamed),
        },
    )
    assert [quantizer.name for quantizer in host.quantizers()] == ["one-wrapped", "two-wrapped"]
    rows = {row["name"]: row for row in host.listing()}
    assert rows["a"]["brings"] == ["quantizer one-wrapped"] and rows["w"]["brings"] == []
    assert rows["w"]["hooks"] == ["avq_register_quantizers"]


def test_a_wrapper_of_the_same_plugin_wraps_the_others_too() -> None:
    calls: list[str] = []

    class Both:
        @hookimpl
        def avq_budget_missed(self, event: Any) -> None:
            calls.append("own")

        @hookimpl(wrapper=True, specname="avq_budget_missed")
        def around(self, event: Any) -> Iterator[Any]:
            calls.append("before")
            answers = yield
            calls.append("after")
            return answers

    other = _plugin(avq_budget_missed=lambda event: calls.append("other"))
    assert PluginHost(allow=[], extra={"both": Both(), "other": other}).budget_missed({}) == ()
    assert calls == ["before", "own", "after", "before", "other", "after"]


def test_a_failing_wrapper_is_reported_and_observers_stay_apart() -> None:
    def fails(event: Any) -> Iterator[Any]:
        yield
        raise RuntimeError("on purpose")

    events: list[Any] = []
    host = PluginHost(
        allow=[],
        extra={
            "good": _plugin(avq_budget_missed=lambda event: events.extend([event])),
            "wrong": _wrapping("avq_budget_missed", fails),
        },
    )
    (line,) = host.budget_missed({"misses": 1})
    assert events == [{"misses": 1}] and "on purpose" in line and "avq_budget_missed" in line


def test_tracing_sees_every_call() -> None:
    host = PluginHost(
        allow=[],
        extra={
            name: _plugin(avq_keep_float=lambda graph: {"stem": "first layer"}) for name in ("one", "two")
        },
    )
    calls: list[tuple[str, list[str], Any]] = []

    def before(hook_name: Any, hook_impls: Any, kwargs: Any) -> None:
        calls.append((hook_name, [impl.plugin.owner.name for impl in hook_impls], kwargs["recipe"]))

    undo = host.manager.add_hookcall_monitoring(before, lambda *_: None)
    recipe = Recipe(model=Path("m.onnx"), output=Path("b"))
    host.keep_float(view_of(small_net()), recipe)
    undo()
    assert calls == [("avq_keep_float", ["one"], recipe), ("avq_keep_float", ["two"], recipe)]


def test_the_same_object_under_two_names_is_refused() -> None:
    plugin = _plugin(avq_register_quantizers=lambda: [])
    with pytest.raises(PluginError, match="already registered") as caught:
        PluginHost(allow=[], extra={"first": plugin, "second": plugin})
    assert "'first'" in caught.value.seen and "'second'" in caught.value.what
