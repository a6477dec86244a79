"""TensorRT 10.x and 11.x by the names of their bindings, and the builder on the real classes of TensorRT for RTX."""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avq.contract.engine_suite import sample_model
from avq.engines import tensorrt
from avq.engines.tensorrt import TensorRtEngine, open_engine
from avq.engines.tensorrt_build import BuildOptions, Calibration, build, make_log
from avq.engines.tensorrt_layers import (
    EngineLayer,
    left_float,
    not_in_int8,
    precision_of,
    read_layers,
    require_planned,
)
from avq.engines.tensorrt_rtx import TensorRtRtxEngine
from avq.errors import BundleError, MachineError, ModelError, RequestError
from avq.types import SessionOptions
from tests.engines.tensorrt_double import ENGINE, INPUT_SHAPE, Double, HostCuda, names_of
from tests.engines.write_tensorrt_names import names

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("10.16", "11.4")
BOTH = pytest.mark.parametrize("release", RELEASES)
PICTURES = [np.full(INPUT_SHAPE, value, np.uint8) for value in (1, 2, 3)]


def layer_counts(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """Precision -> convolutions and matrix products; "reformat" -> layers that only change a format."""
    by_precision: dict[str, int] = {}
    for layer in layers:
        key = (
            (layer.runs_in or "?")
            if layer.is_compute
            else "reformat"
            if "reformat" in layer.kind.lower()
            else ""
        )
        if key:
            by_precision[key] = by_precision.get(key, 0) + 1
    return dict(sorted(by_precision.items()))


def built(double: Double, options: BuildOptions | None = None, report: Any = None) -> Any:
    return build(
        double,
        make_log(double),
        b"model",
        options or BuildOptions(),
        cuda=double.cuda,
        report=report or (lambda line: None),
    )


@BOTH
def test_the_files_own_types_are_kept_on_both_generations(release: Any) -> None:
    phases: list[Any] = []
    double = Double(release)
    result = built(double, report=phases.append)
    assert result.data == ENGINE and result.layers == 2 and result.timing_cache == b"times"
    assert double.set("create_network") == 2  # 1 << STRONGLY_TYPED
    assert double.set("parse") == b"model" and not double.flags()
    assert double.set("IBuilderConfig.profiling_verbosity") == "ProfilingVerbosity.DETAILED"
    assert phases == ["Building (3 steps)"]


@BOTH
def test_a_node_the_parser_refuses_is_named(release: Any) -> None:
    double = Double(release)
    double.refuse_node = "conv_7"
    with pytest.raises(ModelError, match=r"cannot read node 'conv_7' \(Conv\)") as refused:
        built(double)
    assert refused.value.seen == "has no importer"


@BOTH
def test_a_build_that_fails_says_the_librarys_reason(release: Any) -> None:
    double = Double(release)
    double.refuse_build = "could not find any implementation for node head"
    with pytest.raises(ModelError) as refused:
        built(double)
    assert refused.value.seen == double.refuse_build


@BOTH
def test_times_of_another_card_are_dropped(release: Any) -> None:
    double = Double(release)
    double.cache_matches = False
    assert built(double, BuildOptions(timing_cache=b"of another card")).data == ENGINE
    assert [v for k, v in double.said if k == "set_timing_cache"] == [b"of another card", b""]
    assert not [k for k, _ in built_without_cache(release).said if "timing_cache" in k]


def built_without_cache(release: str) -> Double:
    double = Double(release)
    assert built(double, BuildOptions(timing_cache=None)).timing_cache == b""
    return double


@pytest.mark.parametrize("method", ["entropy", "minmax"])
def test_release_10_calibrates_with_avqs_own_network_inputs(method: Any) -> None:
    kept: list[Any] = []
    double = Double("10.16")
    asked = Calibration(method, PICTURES, keep=kept.append)
    built(double, BuildOptions(calibration=asked))
    assert [v for k, v in double.said if k == "batch"] == [p.tobytes() for p in PICTURES]
    assert kept[0].startswith(b"TRT-")
    assert double.flags() == {"BuilderFlag.INT8", "BuilderFlag.FP16"}
    assert double.set("create_network") == 2  # 1 << EXPLICIT_BATCH, and not strongly typed


def test_a_calibration_cache_is_read_in_place_of_pictures() -> None:
    kept: list[Any] = []
    double = Double("10.16")
    cache = b"TRT-101600-EntropyCalibration2\nimages: 3c010a14\n"
    built(double, BuildOptions(calibration=Calibration(cache=cache, keep=kept.append)))
    assert double.set("read_calibration_cache") == cache
    assert not kept and "batch" not in dict(double.said)


def test_release_11_has_no_calibrators_and_says_what_to_give_it() -> None:
    with pytest.raises(RequestError, match="no calibrators") as refused:
        built(Double("11.4"), BuildOptions(calibration=Calibration("entropy", PICTURES)))
    assert "Q/DQ" in refused.value.fix


def test_nothing_to_calibrate_with_is_refused() -> None:
    asked = BuildOptions(calibration=Calibration())
    double = Double("10.16")
    with pytest.raises(RequestError, match="nothing to calibrate with"):
        build(double, make_log(double), b"model", asked)
    with pytest.raises(RequestError, match="no calibration 'median'"):
        built(Double("10.16"), BuildOptions(calibration=Calibration("median", PICTURES)))  # type: ignore[arg-type]


def test_dla_takes_ranges_precisions_and_falls_back_to_the_gpu() -> None:
    double = Double("10.16")
    double.dla_cores = 2
    options = BuildOptions(
        calibration=Calibration(cache=b"TRT-"), layer_precisions={"head": "fp16", "gone": "int8"}, dla_core=1
    )
    built(double, options)
    assert double.set("IBuilderConfig.default_device_type") == "DeviceType.DLA"
    assert double.set("IBuilderConfig.DLA_core") == 1
    assert {"BuilderFlag.GPU_FALLBACK", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS"} <= double.flags()
    assert [v for k, v in double.said if k == "ILayer.precision"] == ["DataType.HALF"]


@BOTH
def test_a_dla_core_that_is_not_there_is_refused(release: Any) -> None:
    with pytest.raises(RequestError, match="no DLA core 0"):
        built(Double(release), BuildOptions(dla_core=0))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a card: opens sessions of a double on host memory."""

    def opened(release: str, *, graphs: bool = True, data: bytes = ENGINE, layers: Any = ()) -> Any:
        double = Double(release, HostCuda(graphs=graphs))
        double.engine_layers = list(layers)
        monkeypatch.setattr(tensorrt, "open_cuda", lambda: double.cuda)
        return double, open_engine(double, make_log(double), data, precision="int8+f16", graph=True)

    return opened


@BOTH
def test_a_frame_is_one_launch_and_its_outputs_are_its_own(release: Any, card: Any) -> None:
    double, session = card(release)
    executed, launched = [k for k, _ in double.said].count("execute_async_v3"), double.cuda.launches
    for value in (7, 9):
        answer = session.infer(np.full(INPUT_SHAPE, value, np.uint8))
        assert np.array_equal(answer["scores"], np.full((1, 4), 2.0 * value, np.float32))
    assert double.cuda.launches == launched + 2 and session.why_no_graph == ""
    assert [k for k, _ in double.said].count("execute_async_v3") == executed
    assert double.set("Runtime.engine_host_code_allowed") is False
    assert session.milliseconds_on_card(3) == [0.5] * 3
    assert session.layer_milliseconds(2) == [("conv", 0.25), ("head", 0.25)]
    session.close()
    assert double.cuda.closed


@BOTH
def test_without_graphs_it_runs_and_says_why(release: Any, card: Any) -> None:
    _, session = card(release, graphs=False)
    assert "cuStreamEndCapture" in session.why_no_graph
    answer = session.run({"images": np.full(INPUT_SHAPE, 4, np.uint8)})
    assert answer["scores"].tolist() == [[8.0] * 4]
    with pytest.raises(RequestError, match="does not fit"):
        session.infer(np.zeros((1, 3, 4, 4), np.uint8))


@BOTH
def test_an_engine_of_another_release_is_refused(release: Any, card: Any) -> None:
    with pytest.raises(BundleError, match="cannot load the engine") as refused:
        card(release, data=b"of another release")
    assert refused.value.seen == "magic tag does not match" and "avq compile" in refused.value.fix


def layer(release: str, name: str, kind: str, dtype: str) -> dict[str, object]:
    """One layer as the inspector of that release prints it."""
    spelled = {"int8": "Int8", "f16": "Half", "f32": "Float"}[dtype]
    tensor: dict[str, object] = {
        "Name": "x",
        "Format/Datatype": f"Thirty-two wide vectorized {spelled} format",
    }
    if release != "10.16":
        tensor = {"Name": "x", "Format": "Thirty-two wide vectorized", "Datatype": spelled}
    nodes = name.split(" + ")
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes)
    return {"Name": name, "LayerType": kind, "Inputs": [tensor], "Metadata": metadata}


@BOTH
def test_layers_that_silently_stayed_float_fail_with_their_names(release: Any, card: Any) -> None:
    listed = [
        layer(release, "conv_0 + relu_0", "CaskConvolution", "int8"),
        layer(release, "conv_1", "CaskConvolution", "f16"),
        layer(release, "conv_2 + relu_2", "CaskConvolution", "f32"),
        layer(release, "decode", "gemm", "f32"),
        layer(release, "Reformatting CopyNode", "Reformat", "f32"),
    ]
    _, session = card(release, layers=listed)
    assert session.precision == "int8+f16"
    assert layer_counts(session.layers) == {"f16": 1, "f32": 2, "int8": 1, "reformat": 1}
    plan = {"conv_0": "int8", "relu_0": "fp16", "conv_1": "int8", "decode": "fp32"}
    assert session.require_planned(plan) == ("conv_1",)
    with pytest.raises(ModelError, match="1 layers stayed in FP32") as refused:
        session.require_planned({**plan, "conv_2": "fp16", "relu_2": "fp16"})
    assert refused.value.seen == "conv_2 + relu_2"


def test_an_inspector_that_tells_little_is_not_believed() -> None:
    assert read_layers("no json") == () and precision_of((), "int8+f16") == "int8+f16"
    (only,) = read_layers('{"Layers": ["conv_0 + relu_0"]}')
    assert only.nodes == ("conv_0", "relu_0") and not only.is_compute
    assert not left_float([only], {"conv_0": "int8"}) and not not_in_int8([only], {"conv_0": "int8"})
    require_planned([only], {"conv_0": "int8"})


def test_a_machine_without_it_says_how_to_get_it() -> None:
    engine = TensorRtEngine()
    status = engine.status()
    if status.can_run:
        pytest.skip("this machine has a card and TensorRT: tests/gpu runs them")
    assert "JetPack" in status.why or "cannot build or run here" in status.why
    with pytest.raises(MachineError):
        engine.open(sample_model(), SessionOptions())
    with pytest.raises(RequestError, match="on the machine that runs them"):
        engine.chosen_architectures(("sm87",))


def test_a_library_that_is_there_reports_its_roads(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, road in (("10.16", "calibrators"), ("11.4", "INT8 by Q/DQ;")):
        monkeypatch.setattr(tensorrt, "_load", lambda release=release: Double(release))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
        status = TensorRtEngine().status()
        assert status.available and road in status.why and status.version == f"{release}.0"


def used_names() -> set[str]:
    """``trt.Class`` and ``trt.Class.member`` in the sources of the engine."""
    found = set()
    for path in sorted((ROOT / "avq" / "engines").glob("*.py")):
        if (path.stem != "gpu_session" and not path.stem.startswith("tensorrt")) or "rtx" in path.stem:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                chain = ast.unparse(node)
                if chain.startswith("trt.") and chain.replace(".", "").replace("_", "").isalnum():
                    found.add(chain.removeprefix("trt."))
    return found


def test_every_name_the_sources_spell_is_one_of_a_release() -> None:
    used = used_names()
    assert len(used) > 20
    known = names_of("10.16") | names_of("11.4")
    assert not {name for name in used if name not in known and not name.endswith(".__init__")}


@BOTH
def test_the_recorded_names_are_those_of_the_bindings(release: Any) -> None:
    folder = Path(os.environ.get("AVQ_TENSORRT_WHEELS", "/nonexistent"))
    bindings = next(folder.glob(f"tensorrt_cu12_bindings-{release}*.whl"), None)
    stubs = next(folder.glob("tensorrt_stubs-*.whl"), None) if release == "10.16" else None
    if bindings is None or (release == "10.16" and stubs is None):
        pytest.skip("set AVQ_TENSORRT_WHEELS to a folder with NVIDIA's bindings and tensorrt-stubs")
    if release == "11.4":
        pytest.importorskip("tensorrt_rtx")
    assert frozenset(names(bindings, stubs)) == names_of(release)


def test_the_builder_works_on_real_classes_of_the_11_kind() -> None:
    """TensorRT for RTX has the builder, parser and flags of 11.x, and builds without a card."""
    status = TensorRtRtxEngine().status()
    if not status.available:
        pytest.skip(f"tensorrt-rtx: {status.why}")
    import tensorrt_rtx

    log = make_log(tensorrt_rtx)
    options = BuildOptions(timing_cache=None)  # asks for a card there
    result = build(tensorrt_rtx, log, sample_model(), options)
    assert len(result.data) > 1000 and result.layers > 0 and not log.errors
    with pytest.raises(ModelError, match="cannot read"):
        build(tensorrt_rtx, make_log(tensorrt_rtx), b"no model", options)
    asked = BuildOptions(calibration=Calibration("entropy", PICTURES))
    with pytest.raises(RequestError, match="no calibrators"):
        build(tensorrt_rtx, make_log(tensorrt_rtx), sample_model(), asked)
