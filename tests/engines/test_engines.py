"""The built-in runtimes: their contract, their buffers, their silence, and what they say of themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest

from avq.builder.lower import lower
from avq.contract.engine_suite import INPUT, OUTPUT, SHAPE, check_engine, sample_model, sample_picture
from avq.engines import builtin_engines, engine_by_name
from avq.engines.cpu import describe, instruction_set
from avq.errors import MachineError, ModelError, PluginError, RequestError
from avq.types import EngineStatus, SessionOptions
from tests.builder.lower.lowering_nets import OUTPUTS, answers, picture, simple_plan, small_net
from tests.conftest import ROOT
from tests.engines.null import NullEngine

ENGINES = [engine for engine in builtin_engines() if engine.status().can_run]
EACH = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)


@EACH
def test_an_engine_keeps_its_contract(engine: Any) -> None:
    assert len(check_engine(engine)) == 8


@EACH
def test_outputs_are_the_same_arrays_every_time(engine: Any) -> None:
    session = engine.open(sample_model(), SessionOptions())
    first = session.infer(sample_picture(0))[OUTPUT]
    assert session.infer(sample_picture(1))[OUTPUT] is first


@EACH
def test_read_only_inputs_are_run(engine: Any) -> None:
    session = engine.open(sample_model(), SessionOptions())
    picture_in = sample_picture(0)
    expected = session.infer(picture_in)[OUTPUT].copy()
    frozen = picture_in.view()
    frozen.flags.writeable = False
    assert np.array_equal(session.infer(frozen)[OUTPUT], expected)
    assert np.array_equal(session.run({INPUT: frozen})[OUTPUT], expected)
    assert np.array_equal(frozen, sample_picture(0)) and not frozen.flags.writeable


@EACH
def test_memory_does_not_grow(engine: Any) -> None:
    session = engine.open(small_net().SerializeToString(), SessionOptions())
    process = psutil.Process()
    for seed in range(50):
        session.infer(picture(seed % 5))
    grown = []
    for _ in range(4):
        before = process.memory_info().rss
        for seed in range(500):
            session.infer(picture(seed % 5))
        grown.append(process.memory_info().rss - before)
    assert min(grown) < 1 << 20, grown  # a leak shows every time; what others of this process take does not


@EACH
def test_a_float_model_gives_what_the_reference_gives(engine: Any) -> None:
    net = small_net()
    wanted = answers(net, [picture(0)])[0]
    got = engine.open(net.SerializeToString(), SessionOptions()).infer(picture(0))
    for name in OUTPUTS:
        assert np.abs(got[name] - wanted[name]).max() <= 1e-4 * np.abs(wanted[name]).max()


@EACH
def test_a_quantized_model_unoptimised_is_the_reference(engine: Any) -> None:
    """Every engine can be asked for plain Q/DQ semantics; a rounding tie may still fall the other way."""
    net = small_net()
    content = lower(net, simple_plan(net), "u8")
    wanted = answers(content, [picture(0)])[0]["boxes"]
    got = engine.open(content, SessionOptions(optimise=False)).infer(picture(0))["boxes"]
    noise = float(((got - wanted) ** 2).mean() / (wanted**2).mean())
    assert noise < 1e-4


@EACH
def test_without_integers_quantizers_round_and_everything_runs_in_float(engine: Any) -> None:
    net = small_net()
    content = lower(net, simple_plan(net), "u8")
    wanted = answers(content, [picture(0)])[0]["boxes"]
    session = engine.open(content, SessionOptions(integers=False))
    got = session.infer(picture(0))["boxes"]
    assert session.precision == "f32"
    assert float(((got - wanted) ** 2).mean() / (wanted**2).mean()) < 1e-4


def test_openvino_reads_back_the_precision_it_ran() -> None:
    engine = engine_by_name("openvino")
    if not engine.status().available:
        pytest.skip("openvino is not installed")
    net = small_net()
    content = lower(net, simple_plan(net), "u8")
    plain = engine.open(content, SessionOptions(optimise=False))
    assert plain.precision == "f32"
    assert engine.open(net.SerializeToString(), SessionOptions()).precision == "f32"
    assert engine.open(content, SessionOptions()).precision == "int8+f32"
    if "bf16" in engine.float_precisions:
        half = engine.open(net.SerializeToString(), SessionOptions(precision="bf16"))
        assert half.precision == "bf16"
        whole = engine.open(net.SerializeToString(), SessionOptions()).infer(picture(0))["boxes"]
        assert not np.array_equal(half.infer(picture(0))["boxes"], whole)


def test_onnxruntime_runs_floats_in_f32_only() -> None:
    with pytest.raises(MachineError, match="bf16"):
        engine_by_name("onnxruntime").open(sample_model(), SessionOptions(precision="bf16"))


def test_onnxruntime_says_int8_only_when_integer_kernels_ran() -> None:
    """Data quantized on both sides of a convolution becomes QLinearConv; on one side it stays float."""
    from avq.types import Edge
    from tests.builder.lower.lowering_nets import data_point, peaks, with_points

    net = small_net()
    one_side = simple_plan(net)
    both = with_points(one_side, data_point(Edge("x10"), *peaks(net, ["x10"])["x10"]))
    both = with_points(both, data_point(Edge("x6"), *peaks(net, ["x6"])["x6"]))
    engine = engine_by_name("onnxruntime")
    assert engine.open(net.SerializeToString(), SessionOptions()).precision == "f32"
    assert engine.open(lower(net, both, "u8"), SessionOptions()).precision == "int8+f32"
    assert engine.open(lower(net, both, "u8"), SessionOptions(optimise=False)).precision == "f32"


@EACH
def test_models_without_a_picture_are_run_by_name(engine: Any) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["n", 2])], [value("y", 1, ["n", 2])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = engine.open(model.SerializeToString(), SessionOptions())
    for rows in (3, 5):
        feed = np.arange(-rows, rows, dtype=np.float32).reshape(rows, 2)
        assert np.array_equal(session.run({"x": feed})["y"], np.maximum(feed, 0))
    with pytest.raises(ModelError, match="does not take one uint8 picture"):
        session.infer(picture(0))


@EACH
def test_packed_weights_of_a_pointwise_convolution_behind_a_split_are_read(engine: Any) -> None:
    """As attention blocks have them; the plugin of OpenVINO 2026.4 refuses the file as it stands."""
    node, value, rng = onnx.helper.make_node, onnx.helper.make_tensor_value_info, np.random.default_rng(0)
    constants = {
        "w8": rng.integers(-127, 128, (6, 4, 1, 1), np.int8),
        "scale": np.linspace(0.01, 0.02, 6, dtype=np.float32).reshape(6, 1, 1, 1),
        "sizes": np.array([4, 4], np.int64),
        "heads": np.array([1, 2, 3, 25], np.int64),
    }
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b"], axis=1),
        node("Cast", ["w8"], ["wide"], to=1),
        node("Mul", ["wide", "scale"], ["w"]),
        node("Conv", ["b", "w"], ["c"], kernel_shape=[1, 1]),
        node("Reshape", ["c", "heads"], ["y"]),
        node("Relu", ["a"], ["z"]),
    ]
    outputs = [value("y", 1, [1, 2, 3, 25]), value("z", 1, [1, 4, 5, 5])]
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, [1, 8, 5, 5])], outputs, tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    x = rng.normal(size=(1, 8, 5, 5)).astype(np.float32)
    got = engine.open(model.SerializeToString(), SessionOptions()).run({"x": x})
    weights = (constants["w8"] * constants["scale"])[:, :, 0, 0]
    sums = np.einsum("oc,nchw->nohw", weights, x[:, 4:])
    np.testing.assert_allclose(got["y"], sums.reshape(1, 2, 3, 25), atol=1e-4)
    np.testing.assert_array_equal(got["z"], np.maximum(x[:, :4], 0))


@EACH
def test_outputs_of_every_kind_come_back(engine: Any) -> None:
    """Twins of one tensor, the input itself, scalars, integers, booleans, halves, lengths that vary."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    shape = list(SHAPE)
    nodes = [
        node("Cast", [INPUT], ["a::x/0"], to=1),
        node("Identity", ["a::x/0"], ["twin"]),
        node("ReduceMean", ["a::x/0"], ["mean"], keepdims=0),
        node("Cast", ["a::x/0"], ["flags"], to=9),
        node("Cast", ["a::x/0"], ["halves"], to=10),
    ]
    kinds = {
        "a::x/0": (1, shape),
        "twin": (1, shape),
        "mean": (1, []),
        "flags": (9, shape),
        "halves": (10, shape),
    }
    outputs = [value(name, *kind) for name, kind in kinds.items()]
    picture_input = value(INPUT, onnx.TensorProto.UINT8, shape)
    everything = [*outputs, value(INPUT, onnx.TensorProto.UINT8, shape)]
    varying = [*outputs, value("where", onnx.TensorProto.INT64, [4, "n"])]
    for extra, listed in (
        ([], outputs),
        ([], everything),
        ([node("NonZero", ["a::x/0"], ["where"])], varying),
    ):
        graph = onnx.helper.make_graph([*nodes, *extra], "g", [picture_input], listed)
        opset = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
        session = engine.open(model, SessionOptions())
        for seed in range(2):
            pixels = sample_picture(seed)
            got = session.infer(pixels)
            assert set(got) == {value.name for value in listed}
            assert np.array_equal(got["a::x/0"], pixels)
            assert np.array_equal(got["twin"], pixels)
            assert np.array_equal(got["flags"], pixels != 0)
            assert np.array_equal(got["halves"], pixels)
            assert got["halves"].dtype == np.float16
            assert got["mean"] == pytest.approx(pixels.mean(), rel=1e-5)
            assert np.array_equal(got.get(INPUT, pixels), pixels)
            assert "where" not in got or got["where"].shape[1] == np.count_nonzero(pixels)


@EACH
def test_a_file_is_opened_by_path(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sample_model())
    by_path = engine.open(path, SessionOptions()).infer(sample_picture(0))[OUTPUT]
    by_bytes = engine.open(sample_model(), SessionOptions()).infer(sample_picture(0))[OUTPUT]
    assert np.array_equal(by_path, by_bytes)


@EACH
def test_opening_running_and_failing_print_nothing(engine: Any) -> None:
    script = (
        "from avq.engines import engine_by_name\n"
        "from avq.types import SessionOptions\n"
        "from avq.errors import ModelError\n"
        "from avq.contract.engine_suite import sample_model, sample_picture\n"
        f"engine = engine_by_name('{engine.name}')\n"
        "engine.open(sample_model(), SessionOptions()).infer(sample_picture(0))\n"
        "try:\n    engine.open(b'no model', SessionOptions())\n"
        "except ModelError:\n    pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_vendor_libraries_are_imported_late() -> None:
    script = (
        "import sys, avq.engines, avq.plugins, avq.measure.latency\n"
        "from avq.plugins import PluginHost\n"
        "PluginHost(allow=[]).engines()\n"
        "loaded = {'onnxruntime', 'openvino', 'onnx', 'torch', 'scipy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_missing_runtime_is_a_machine_error_with_the_command(tmp_path: Path) -> None:
    """A fresh interpreter in which no vendor package can be imported."""
    for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    script = (
        "from avq.engines import builtin_engines\n"
        "from avq.errors import MachineError\n"
        "from avq.types import SessionOptions\n"
        "for engine in builtin_engines():\n"
        "    assert not engine.status().available and engine.float_precisions == ()\n"
        "    try:\n        engine.open(b'', SessionOptions())\n"
        "    except MachineError as error:\n        print(error.fix)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    extras = ("onnxruntime", "openvino", "tensorrt", "rtx")
    assert done.stdout.splitlines() == [f'pip install "avq[{extra}]"' for extra in extras]


def test_an_unknown_engine_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'openvino'"):
        engine_by_name("openvno")


def test_the_contract_catches_an_engine_that_lies() -> None:
    base: Any = type(ENGINES[0])

    class Forgetful(base):
        def status(self) -> EngineStatus:
            return EngineStatus("another name", True, "1", True, True, "")

    with pytest.raises(PluginError, match="status carries the engine's name"):
        check_engine(Forgetful())


def test_the_null_engine_answers_what_it_was_given() -> None:
    canned = {"y": np.arange(4, dtype=np.float32)}
    session = NullEngine(canned, busy_ns=1000).open(b"", SessionOptions())
    assert session.infer(sample_picture(0))["y"] is canned["y"]


def test_the_instruction_set_is_named_for_known_flags_only() -> None:
    x86 = "processor : 0\nflags\t\t: fpu avx2 fma avx512f avx512_vnni secret\n"
    assert describe("x86_64", x86) == "x86-64 avx2 fma avx512f avx512_vnni"
    assert describe("aarch64", "Features\t: fp asimd asimddp i8mm\n") == "aarch64 asimd asimddp i8mm"
    assert describe("riscv64", "") == "riscv64"
    assert instruction_set() == instruction_set()


WATCHED = """
import sys
seen = []
watched = ("os.fork", "os.posix_spawn", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
sys.addaudithook(lambda event, _: seen.append(event) if event in watched else None)
from avq.contract.engine_suite import sample_model, sample_picture
from avq.engines import engine_by_name
from avq.types import SessionOptions
session = engine_by_name(sys.argv[1]).open(sample_model(), SessionOptions())
session.infer(sample_picture(0))
session.close()
print(seen)
"""


@EACH
def test_a_runtime_reports_to_nobody(engine: Any, tmp_path: Path) -> None:
    """No process, no connection, nothing kept in the home folder: some vendors count who uses them."""
    unwatched = {
        name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, engine.name],
        cwd=ROOT, env={**unwatched, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
