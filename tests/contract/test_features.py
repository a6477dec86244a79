"""One wrong example per optional protocol: a wrong type, a wrong unit or a missing member is refused by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pydantic import BaseModel

from avq.contract.features import (
    check_engine_features,
    check_open_sink,
    check_quantizer_features,
    check_sink,
    check_source,
)
from avq.daemon import sink_types, source_types
from avq.engines import engine_by_name
from avq.errors import PluginError, RequestError
from avq.types import CompiledEngine, LayerTime
from tests.architecture.test_plugin_contract import optional_protocols
from tests.conftest import ROOT

REFUSED: set[str] = set()


def refused(protocol: str, call: Any) -> None:
    """The call must break the contract of exactly this protocol."""
    with pytest.raises(PluginError) as caught:
        call()
    assert f"the contract of {protocol} is broken" in caught.value.what, caught.value.what
    assert caught.value.seen and protocol in caught.value.fix
    REFUSED.add(protocol)


class Options(BaseModel):
    encodings: Path | None = None


def quantizer(**members: object) -> SimpleNamespace:
    return SimpleNamespace(name="wrong", version="1", options=Options, plan=lambda *_: None, **members)


def test_quantizers() -> None:
    assert check_quantizer_features(quantizer(imports=True, refused_targets={"cpu": "why"}), Options())
    assert check_quantizer_features(quantizer()) == ()
    refused("ImportingQuantizer", lambda: check_quantizer_features(quantizer(imports="yes")))
    refused("LimitedQuantizer", lambda: check_quantizer_features(quantizer(refused_targets=["tensorrt"])))
    refused("LimitedQuantizer", lambda: check_quantizer_features(quantizer(refused_targets={"cpu": ""})))
    wrong = SimpleNamespace(encodings="a.json")
    refused("EncodingsOptions", lambda: check_quantizer_features(quantizer(imports=True), wrong))
    refused("EncodingsOptions", lambda: check_quantizer_features(quantizer(), Options()))


class Compiling:
    """A right example over onnxruntime."""

    name, float_precisions, compiles_on_target = "compiling", ("f32",), False
    scale = 1.0

    def __init__(self) -> None:
        self._engine = engine_by_name("onnxruntime")
        self.status, self.encodings, self.open = (
            self._engine.status,
            self._engine.encodings,
            self._engine.open,
        )

    def architecture(self) -> str:
        return "sm00"

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if names:
            raise RequestError("no such architecture")
        return ("sm00",)

    def compile(
        self, model: Any, architecture: Any, options: Any = None, report: Any = print
    ) -> CompiledEngine:
        if options is not None:
            raise RequestError("no options")
        time.sleep(0.02)
        return CompiledEngine(architecture, model, 0.02 * self.scale, 1)

    def open_engine(self, engine: Any, precision: Any) -> Any:
        return self._engine.open(
            engine, cast(Any, SimpleNamespace(precision="f32", threads=1, optimise=True, integers=True))
        )


class Partial(Compiling):
    open_engine = property(lambda self: (_ for _ in ()).throw(AttributeError("open_engine")))


class Profiling:
    name, float_precisions = "profiling", ("f32",)

    def __init__(self, ns: object) -> None:
        self._ns = ns
        engine = engine_by_name("onnxruntime")
        self.status, self.encodings, self.open = engine.status, engine.encodings, engine.open

    def layer_times(self, models: Any, options: Any, picture: Any, *, rounds: int = 40) -> Any:
        time.sleep(0.001)
        return [[LayerTime("conv", ("conv",), self._ns)] for _ in models]  # type: ignore[arg-type]


class PlannedWrongly(Profiling):
    def __init__(self) -> None:
        super().__init__(2000)
        inner = self.open
        self.open = lambda model, options: Loose(inner(model, options))


class Loose:
    def __init__(self, session: Any) -> None:
        self.engine, self.precision = session.engine, session.precision
        self.infer, self.run, self.close = session.infer, session.run, session.close

    def require_planned(self, wanted: Any) -> Any:
        return len(wanted)


def test_engines() -> None:
    assert check_engine_features(cast(Any, Compiling())) == ("CompilingEngine",)
    assert check_engine_features(cast(Any, Profiling(20_000))) == ("ProfilingEngine",)
    in_milliseconds = Compiling()
    in_milliseconds.scale = 1000.0
    refused("CompilingEngine", lambda: check_engine_features(cast(Any, in_milliseconds)))
    refused("CompilingEngine", lambda: check_engine_features(cast(Any, Partial())))
    refused("ProfilingEngine", lambda: check_engine_features(cast(Any, Profiling(0.02))))  # milliseconds
    refused(
        "ProfilingEngine", lambda: check_engine_features(cast(Any, Profiling(20_000_000_000)))
    )  # picoseconds
    refused("PlannedSession", lambda: check_engine_features(cast(Any, PlannedWrongly())))


class Recorded:
    """A right file source of ten pictures, 30 frames per second."""

    live, fps, remark = False, 30.0, ""
    unit = 1e9

    def __init__(self) -> None:
        self.lost: object = {}
        self.position_ns: int | None = None
        self._count = 0

    def read(self) -> tuple[np.ndarray, int]:
        self.position_ns = round(self._count / self.fps * self.unit)
        self._count += 1
        return np.zeros((8, 8, 3), np.uint8), time.monotonic_ns()

    def close(self) -> None:
        """Nothing to free."""


class Kind:
    schemes = ("recorded",)

    def __init__(self, source: object, **members: object) -> None:
        self.open = lambda uri, *, open_timeout_ms, read_timeout_ms: source
        self.__dict__.update(members)


def _raises(error: Exception) -> Any:
    def check(uri: str) -> None:
        raise error

    return check


def test_sources() -> None:
    assert check_source(cast(Any, Kind(Recorded(), live=True)), "recorded://") == (
        "LiveSourceType",
        "FileSource",
    )
    in_milliseconds, uncounted = Recorded(), Recorded()
    in_milliseconds.unit = 1e3
    uncounted.lost = 3
    refused("FileSource", lambda: check_source(cast(Any, Kind(in_milliseconds)), "recorded://"))
    refused("FileSource", lambda: check_source(cast(Any, Kind(uncounted)), "recorded://"))
    refused("LiveSourceType", lambda: check_source(cast(Any, Kind(Recorded(), live="yes")), "recorded://"))
    refused(
        "UriChecker",
        lambda: check_source(cast(Any, Kind(Recorded(), check=lambda uri: False)), "recorded://"),
    )
    refused(
        "UriChecker",
        lambda: check_source(cast(Any, Kind(Recorded(), check=_raises(ValueError("x")))), "recorded://"),
    )
    seconds = Recorded()
    seconds.read = lambda: (np.zeros((8, 8, 3), np.uint8), time.monotonic())  # type: ignore[assignment,return-value]
    refused("FrameSource", lambda: check_source(cast(Any, Kind(seconds)), "recorded://"))


class Writing:
    """A sink without optional protocols."""

    wants_pixels = False

    def __init__(self, **members: object) -> None:
        self.__dict__.update(members)

    def write(self, message: Any, frame: Any) -> None:
        """Takes it."""

    def close(self) -> None:
        """Nothing to free."""


class Raising(Writing):
    """An alert source whose event holds the time of the message in milliseconds."""

    def connect(self, emit: Any) -> None:
        self._emit = emit

    def write(self, message: Any, frame: Any) -> None:
        self._emit({"kind": "alert", "t_ns": message.detections.t_capture_ns // 1_000_000 - 10**12})


def test_sinks() -> None:
    assert check_open_sink(Writing()) == ()
    refused("TimingSink", lambda: check_open_sink(Writing(write_timing=lambda message: None)))
    refused("EventSink", lambda: check_open_sink(Writing(write_event=lambda event: None)))
    wrong = Writing(write_event=lambda event: None, events_only="no")
    refused("EventSink", lambda: check_open_sink(wrong))
    refused("AlertSource", lambda: check_open_sink(Raising()))
    loose = Writing(report=lambda: {"spooled": "3"}, gauges=frozenset())
    refused("ReportingSink", lambda: check_open_sink(loose))
    refused(
        "ReportingSink", lambda: check_open_sink(Writing(report=lambda: {}, gauges=frozenset({"waiting"})))
    )
    counts: Iterator[int] = iter((3, 2))
    falls = Writing(report=lambda: {"spooled": next(counts)}, gauges=frozenset())
    refused("ReportingSink", lambda: check_open_sink(falls))


def test_every_optional_protocol_has_a_wrong_example() -> None:
    for test in (test_quantizers, test_engines, test_sources, test_sinks):
        test()
    assert {protocol.__name__ for protocol in optional_protocols()} <= REFUSED


def test_built_in_sources_and_sinks_keep_the_contract(tmp_path: Path) -> None:
    kinds = {scheme: kind for kind in source_types() for scheme in kind.schemes}
    scene = check_source(kinds["scene"], "scene://drive?seed=1&size=64x64&frames=3&fps=500")
    assert scene == ("UriChecker",)
    (picture,) = sorted((ROOT / "calibration_data").rglob("*.jpg"))[:1]
    assert "FileSource" in check_source(kinds[".jpg"], str(picture))
    sinks = {scheme: kind for kind in sink_types() for scheme in kind.schemes}
    recorder = check_sink(sinks[".mcap"], str(tmp_path / "log.mcap"))
    assert set(recorder) == {"UriChecker", "TimingSink", "EventSink", "ReportingSink"}
    assert check_sink(sinks["jsonl"], f"jsonl:{tmp_path / 'boxes.jsonl'}") == ()
