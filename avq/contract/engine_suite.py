"""What every engine must do; run it in the tests of your own engine.

from avq.contract.engine_suite import check_engine
def test_contract():
    check_engine(MyEngine())
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np

from avq.errors import AvqError, MachineError, ModelError, PluginError
from avq.hookspecs import Engine
from avq.types import F32, U8, SessionOptions

# A one-convolution network small enough to carry as text, and its answer in plain numpy.

#: ONNX, opset 17: picture uint8 1x3x8x8 -> Cast -> Conv 1x1 (3 to 2 channels, bias) -> Relu -> y float32 1x2x8x8.
_ONNX = (
    "CAgSA2F2cTrXAQojCgdwaWN0dXJlEgF4GgRjYXN0IgRDYXN0KgkKAnRvGAGgAQIKGAoBeAoBdwoBYhIBYxoEY29udiIEQ29udgoSCgFj"
    "EgF5GgRyZWx1IgRSZWx1EgZzYW1wbGUqJwgCCAMIAQgBEAFCAXdKGAAAIL8AAMC+AAAAvgAAAD4AAMA+AAAgPyoRCAIQAUIBYkoIAAAA"
    "PwAAgL5aIQoHcGljdHVyZRIWChQIAhIQCgIIAQoCCAMKAggICgIICGIbCgF5EhYKFAgBEhAKAggBCgIIAgoCCAgKAggIQgQKABAR"
)
INPUT, OUTPUT = "picture", "y"
SHAPE = (1, 3, 8, 8)


def sample_model() -> bytes:
    """The network as an ONNX file."""
    return base64.b64decode(_ONNX)


def sample_picture(seed: int) -> U8:
    """Noise of the network's input shape, (1, 3, 8, 8) uint8."""
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def sample_answer(picture: U8) -> F32:
    """What the network computes, (1, 2, 8, 8) float32."""
    weight = ((np.arange(6) - 2.5) / 4).reshape(2, 3)
    bias = np.array([0.5, -0.25]).reshape(1, 2, 1, 1)
    answer = np.einsum("oc,bchw->bohw", weight, picture.astype(np.float64)) + bias
    positive: F32 = np.maximum(answer, 0.0).astype(np.float32)
    return positive


# Largest error against numpy, relative to the largest value: float32 sums, and 8 bits of mantissa.
_TOLERANCE = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2}


def check_engine(engine: Engine) -> tuple[str, ...]:
    """Run every check and return their names.

    Raises PluginError at the first check the engine does not pass, MachineError when its runtime is not
    installed here, so that nothing could be checked.
    """
    status = engine.status()
    if not (status.available and status.can_run):
        raise MachineError(
            f"the engine {engine.name} cannot run here", seen=status.why, fix="install its runtime"
        )
    for check in _CHECKS:
        check(engine)
    return tuple(check.__name__.strip("_") for check in _CHECKS)


def _status_is_stable(engine: Engine) -> None:
    status = engine.status()
    _require(status.name == engine.name, engine, "status carries the engine's name", status.name)
    _require(bool(status.version), engine, "an available engine has a version", repr(status.version))
    _require(engine.status() == status, engine, "status does not change", str(engine.status()))


def _names_are_known(engine: Engine) -> None:
    _require(
        "f32" in engine.float_precisions and set(engine.float_precisions) <= set(_TOLERANCE),
        engine,
        "float_precisions are of f32, f16, bf16, with f32",
        str(engine.float_precisions),
    )
    known = {"s8", "u8", "asymmetric"}
    _require(
        set(engine.encodings()) <= known,
        engine,
        f"encodings are of {sorted(known)}",
        str(engine.encodings()),
    )


def _computes_the_network(engine: Engine) -> None:
    for precision in engine.float_precisions:
        options = SessionOptions(precision=precision)
        session = engine.open(sample_model(), options)
        _require(precision in session.precision, engine, f"a {precision} session says so", session.precision)
        for seed in range(3):
            picture = sample_picture(seed)
            wanted = sample_answer(picture)
            error = float(np.abs(session.infer(picture)[OUTPUT] - wanted).max() / wanted.max())
            _require(
                error <= _TOLERANCE[precision],
                engine,
                f"{precision} matches numpy",
                f"relative error {error:g}",
            )
        session.close()


def _runs_unoptimised(engine: Engine) -> None:
    session = engine.open(sample_model(), SessionOptions(optimise=False))
    picture = sample_picture(0)
    by_name = np.array(session.run({INPUT: picture})[OUTPUT])
    _require(
        np.array_equal(by_name, session.infer(picture)[OUTPUT]),
        engine,
        "run and infer give the same numbers",
        f"{np.abs(by_name - session.infer(picture)[OUTPUT]).max():g}",
    )
    session.close()


def _repeats_itself(engine: Engine) -> None:
    session = engine.open(sample_model(), SessionOptions())
    first = np.array(session.infer(sample_picture(0))[OUTPUT])
    session.infer(sample_picture(1))
    again = session.infer(sample_picture(0))[OUTPUT]
    _require(np.array_equal(first, again), engine, "the same picture gives the same bits", "they differ")
    session.close()


def _sessions_are_apart(engine: Engine) -> None:
    one = engine.open(sample_model(), SessionOptions())
    other = engine.open(sample_model(), SessionOptions())
    borrowed = one.infer(sample_picture(0))[OUTPUT]
    kept = np.array(borrowed)
    other.infer(sample_picture(1))
    _require(np.array_equal(borrowed, kept), engine, "a session leaves another's outputs alone", "changed")
    one.close()
    other.close()


def _refuses_wrong_inputs(engine: Engine) -> None:
    session = engine.open(sample_model(), SessionOptions())
    wrong = np.zeros((1, 3, 8, 9), np.uint8)
    _must_raise(engine, "infer of a wrong shape", lambda: session.infer(wrong), AvqError)
    floats = np.zeros(SHAPE, np.float32)
    _must_raise(engine, "infer of floats", lambda: session.infer(floats), AvqError)  # type: ignore[arg-type]
    _must_raise(engine, "run without an input", lambda: session.run({}), AvqError)
    unknown = {INPUT: sample_picture(0), "unknown": wrong}
    _must_raise(engine, "run of an unknown input", lambda: session.run(unknown), AvqError)
    session.close()


def _refuses_bad_files(engine: Engine) -> None:
    cut = sample_model()[:100]
    for what, model in (("empty bytes", b""), ("noise", b"\xff" * 64), ("a cut file", cut)):
        _must_raise(engine, f"open of {what}", _opening(engine, model), ModelError)
    _must_raise(engine, "open of no file", _opening(engine, Path("no", "such.onnx")), ModelError)


def _opening(engine: Engine, model: bytes | Path) -> Callable[[], object]:
    return lambda: engine.open(model, SessionOptions())


def _must_raise(engine: Engine, what: str, call: Callable[[], object], kind: type[AvqError]) -> None:
    try:
        call()
    except kind:
        return
    except Exception as error:
        _require(False, engine, f"{what} raises {kind.__name__}", f"{type(error).__name__}: {error}")
    _require(False, engine, f"{what} raises {kind.__name__}", "nothing was raised")


def _require(holds: bool, engine: Engine, what: str, seen: str) -> None:
    if not holds:
        raise PluginError(f"the engine {engine.name} breaks its contract: {what}", seen=seen)


_CHECKS: tuple[Callable[[Engine], None], ...] = (
    _status_is_stable,
    _names_are_known,
    _computes_the_network,
    _runs_unoptimised,
    _repeats_itself,
    _sessions_are_apart,
    _refuses_wrong_inputs,
    _refuses_bad_files,
)
