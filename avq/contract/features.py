"""Checks of the optional protocols, and of sources and sinks, which have no other suite.

from avq.contract.features import check_engine_features, check_sink, check_source
def test_contract():
    check_source(MySourceType(), "mine://3")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from avq.contract.engine_suite import OUTPUT, sample_answer, sample_model, sample_picture
from avq.errors import AvqError, PluginError, RequestError
from avq.hookspecs import (
    AlertSource,
    CompilingEngine,
    EncodingsOptions,
    Engine,
    EventSink,
    FileSource,
    FrameSource,
    ImportingQuantizer,
    LimitedQuantizer,
    LiveSourceType,
    PlannedSession,
    ProfilingEngine,
    Quantizer,
    ReportingSink,
    Session,
    Sink,
    SinkType,
    SourceType,
    TimingSink,
    UriChecker,
)
from avq.types import CompiledEngine, Detections, Frame, LayerTime, Published, SessionOptions, StageTimes

_FRAMES = 10
_MINUTE_NS = 60 * 10**9
_OPEN_MS, _READ_MS = 5000, 2000
_UNKNOWN = "no such architecture"


def check_quantizer_features(quantizer: Quantizer, options: object = None) -> tuple[str, ...]:
    """Check ``ImportingQuantizer``, ``LimitedQuantizer`` and ``EncodingsOptions``.

    Args:
        quantizer: the strategy.
        options: a validated instance of its options; None leaves ``EncodingsOptions`` out.

    Returns:
        Names of the optional protocols that it has.

    Raises:
        PluginError: a value has the wrong type; names the protocol and the member.
    """
    if isinstance(quantizer, ImportingQuantizer):
        _require(
            isinstance(quantizer.imports, bool), "ImportingQuantizer", "imports is a bool", quantizer.imports
        )
    if isinstance(quantizer, LimitedQuantizer):
        refused = quantizer.refused_targets
        good = isinstance(refused, Mapping) and all(
            _text(target) and _text(why) for target, why in refused.items()
        )
        _require(good, "LimitedQuantizer", "refused_targets maps a target to a reason", refused)
    if isinstance(options, EncodingsOptions):
        path = options.encodings
        _require(
            path is None or isinstance(path, Path), "EncodingsOptions", "encodings is a Path or None", path
        )
        takes = isinstance(quantizer, ImportingQuantizer) and quantizer.imports
        _require(takes, "EncodingsOptions", "the strategy has imports = True", "it does not import")
    return _names(quantizer, (ImportingQuantizer, LimitedQuantizer)) + _names(options, (EncodingsOptions,))


def check_engine_features(engine: Engine) -> tuple[str, ...]:
    """Check ``CompilingEngine``, ``ProfilingEngine`` and ``PlannedSession`` on a network with a known answer.

    Args:
        engine: an engine that can run here.

    Returns:
        Names of the optional protocols that it has.

    Raises:
        PluginError: a member is missing, has the wrong type or the wrong unit.
    """
    names = _names(engine, (CompilingEngine, ProfilingEngine))
    if isinstance(engine, CompilingEngine):
        _check_compiling(engine)
    if isinstance(engine, ProfilingEngine):
        _check_profiling(engine)
    with closing(engine.open(sample_model(), SessionOptions())) as session:
        names += _names(session, (PlannedSession,))
        if isinstance(session, PlannedSession):
            layers = session.require_planned({})
            _require(_texts(layers), "PlannedSession", "require_planned gives a tuple of layer names", layers)
    return names


def _check_compiling(engine: CompilingEngine) -> None:
    name = "CompilingEngine"
    _require(
        isinstance(engine.compiles_on_target, bool),
        name,
        "compiles_on_target is a bool",
        engine.compiles_on_target,
    )
    here = engine.architecture()
    _require(isinstance(here, str), name, "architecture() is a str", here)
    usual = engine.chosen_architectures(())
    _require(_texts(usual), name, "chosen_architectures(()) is a tuple of names", usual)
    _must_refuse(name, "an unknown architecture", lambda: engine.chosen_architectures((_UNKNOWN,)))
    _must_refuse(name, "unknown build options", lambda: engine.compile(sample_model(), here, object()))
    lines: list[str] = []
    before_s = time.monotonic()
    compiled = engine.compile(sample_model(), here or "current", None, lines.append)
    spent_s = time.monotonic() - before_s
    _require(isinstance(compiled, CompiledEngine), name, "compile gives a CompiledEngine", compiled)
    _require(
        isinstance(compiled.data, bytes) and bool(compiled.data), name, "data is bytes", type(compiled.data)
    )
    _require(0 <= compiled.seconds <= spent_s, name, "seconds is the build time in seconds", compiled.seconds)
    _require(all(isinstance(line, str) for line in lines), name, "report is called with text", lines)
    with closing(engine.open_engine(compiled.data, "f32")) as session:
        _require(_is_right(session), name, "open_engine computes the network", "other outputs")


def _check_profiling(engine: ProfilingEngine) -> None:
    name, models = "ProfilingEngine", [sample_model()] * 2
    before_ns = time.monotonic_ns()
    times = engine.layer_times(models, SessionOptions(), sample_picture(0), rounds=5)
    spent_ns = time.monotonic_ns() - before_ns
    _require(len(times) == len(models), name, "layer_times gives one list per model", len(times))
    for layers in times:
        _require(bool(layers), name, "a model has layers", "none")
        for layer in layers:
            good = isinstance(layer, LayerTime) and type(layer.ns) is int and layer.ns >= 0
            _require(good, name, "each time is a LayerTime with an int of ns", layer)
    total_ns = sum(layer.ns for layers in times for layer in layers)
    _require(
        total_ns <= spent_ns, name, "times are nanoseconds of one inference", f"{total_ns} in {spent_ns} ns"
    )
    with closing(engine.open(sample_model(), SessionOptions())) as session:
        infer_ns = _infer_ns(session) * len(models)
    fits = total_ns == 0 or total_ns * 2000 >= infer_ns
    _require(
        fits, name, "times are nanoseconds of one inference", f"{total_ns}, a whole inference {infer_ns} ns"
    )


def _infer_ns(session: Session) -> int:
    """Give the shortest of some inferences."""
    times = []
    for _ in range(5):
        before_ns = time.monotonic_ns()
        session.infer(sample_picture(0))
        times.append(time.monotonic_ns() - before_ns)
    return min(times)


def _is_right(session: Session) -> bool:
    picture = sample_picture(0)
    return bool(np.allclose(session.infer(picture)[OUTPUT], sample_answer(picture), rtol=2e-2, atol=1.0))


def check_source(kind: SourceType, uri: str) -> tuple[str, ...]:
    """Open a URI, read ten pictures, check them and the optional protocols of type and source.

    Args:
        kind: the source type.
        uri: a URI that can be opened here.

    Returns:
        Names of the optional protocols that it has.

    Raises:
        PluginError: a value has the wrong type, shape or unit; names the protocol.
        AvqError: the URI cannot be opened.
    """
    if isinstance(kind, LiveSourceType):
        _require(isinstance(kind.live, bool), "LiveSourceType", "live is a bool", kind.live)
    before_ns = time.monotonic_ns()
    with closing(kind.open(uri, open_timeout_ms=_OPEN_MS, read_timeout_ms=_READ_MS)) as source:
        _check_uri(kind, uri)
        _require(isinstance(source.live, bool), "FrameSource", "live is a bool", source.live)
        _require(_number(source.fps), "FrameSource", "fps is a number, 0 or more", source.fps)
        for count in range(_FRAMES):
            picture = source.read()
            if picture is None:
                break
            _check_picture(picture, before_ns)
            if isinstance(source, FileSource):
                _check_file(source, count)
        return _names(kind, (LiveSourceType, UriChecker)) + _names(source, (FileSource,))


def _check_picture(picture: tuple[Any, Any], before_ns: int) -> None:
    pixels, at_ns = picture
    good = (
        isinstance(pixels, np.ndarray)
        and pixels.dtype == np.uint8
        and pixels.ndim == 3
        and pixels.shape[2] == 3
    )
    _require(good, "FrameSource", "a picture is (H, W, 3) uint8", np.shape(pixels))
    good = type(at_ns) is int and before_ns <= at_ns <= time.monotonic_ns()
    _require(good, "FrameSource", "the capture time is ns of time.monotonic_ns", at_ns)


def _check_file(source: FrameSource, index: int) -> None:
    assert isinstance(source, FileSource)
    position_ns, lost, remark = source.position_ns, source.lost, source.remark
    good = position_ns is None or (type(position_ns) is int and position_ns >= 0)
    _require(good, "FileSource", "position_ns is an int or None", position_ns)
    good = isinstance(lost, Mapping) and all(
        _text(cause) and type(n) is int and n >= 0 for cause, n in lost.items()
    )
    _require(good, "FileSource", "lost maps a cause to a count of frames", lost)
    _require(isinstance(remark, str), "FileSource", "remark is text", remark)
    if position_ns and source.fps > 0 and index:
        expected_ns = index * 1e9 / source.fps
        good = expected_ns / 100 <= position_ns <= expected_ns * 100
        _require(good, "FileSource", "position_ns is nanoseconds", f"{position_ns} after {index} frames")


def check_sink(kind: SinkType, uri: str, labels: Sequence[str] = ("car", "person")) -> tuple[str, ...]:
    """Open a URI, write messages, stage times and an event, check the optional protocols, close.

    Args:
        kind: the sink type.
        uri: a URI that can be opened here.
        labels: class names.

    Returns:
        Names of the optional protocols that it has.

    Raises:
        PluginError: a value has the wrong type or unit, or a call fails; names the protocol.
        AvqError: the URI cannot be opened.
    """
    features = check_open_sink(kind.open(uri, labels=labels))
    _check_uri(kind, uri)
    return _names(kind, (UriChecker,)) + features


def check_open_sink(sink: Sink) -> tuple[str, ...]:
    """Check a sink that is open, and close it; as ``check_sink``."""
    names = _names(sink, (TimingSink, EventSink, AlertSource, ReportingSink))
    _require(isinstance(sink.wants_pixels, bool), "Sink", "wants_pixels is a bool", sink.wants_pixels)
    events: list[Any] = []
    if isinstance(sink, AlertSource):
        _call("AlertSource", "connect takes a function", lambda: sink.connect(events.append))
    counts = _report_of(sink)
    frame = Frame("contract", 0, time.monotonic_ns(), np.zeros((48, 64, 3), np.uint8))
    message = _message(frame)
    if isinstance(sink, TimingSink):
        times = StageTimes(1_000, 2_000_000, 3_000_000, 500_000)
        _call(
            "TimingSink",
            "write_timing takes a message and its times",
            lambda: sink.write_timing(message, times),
        )
    _call("Sink", "write takes a message", lambda: sink.write(message, frame if sink.wants_pixels else None))
    if isinstance(sink, EventSink):
        _require(isinstance(sink.events_only, bool), "EventSink", "events_only is a bool", sink.events_only)
        event = {"kind": "contract", "t_ns": frame.t_capture_ns, "camera": "contract", "reason": "a check"}
        _call("EventSink", "write_event takes an event", lambda: sink.write_event(event))
    _check_report(sink, counts, _report_of(sink))
    _call("Sink", "close", sink.close)
    for event in events:
        _check_event(event)
    return names


def _message(frame: Frame) -> Published:
    box = np.array([[1.0, 2.0, 30.0, 40.0]], np.float32)
    detections = Detections(
        box, np.array([0.9], np.float32), np.array([0]), frame.camera, frame.seq, frame.t_capture_ns
    )
    return Published(detections, 10_000_000, 0, False, "normal", "0" * 64, (64, 48))


def _report_of(sink: Sink) -> Mapping[str, int]:
    if not isinstance(sink, ReportingSink):
        return {}
    counts = sink.report()
    good = isinstance(counts, Mapping) and all(_text(name) and type(n) is int for name, n in counts.items())
    _require(good, "ReportingSink", "report maps a name to an int", counts)
    return dict(counts)


def _check_report(sink: Sink, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    if not isinstance(sink, ReportingSink):
        return
    unknown = sorted(set(sink.gauges) - set(after))
    _require(not unknown, "ReportingSink", "gauges are names of report()", ", ".join(unknown))
    fallen = [name for name in before if after.get(name, 0) < before[name] and name not in sink.gauges]
    _require(not fallen, "ReportingSink", "only gauges fall", ", ".join(fallen))


def _check_event(event: Any) -> None:
    good = isinstance(event, Mapping) and _text(event.get("kind"))
    _require(good, "AlertSource", "an event is a mapping with its kind", event)
    at_ns = event.get("t_ns")
    good = type(at_ns) is int and abs(at_ns - time.monotonic_ns()) < _MINUTE_NS
    _require(good, "AlertSource", "t_ns is ns of time.monotonic_ns", at_ns)


def _check_uri(kind: object, uri: str) -> None:
    if not isinstance(kind, UriChecker):
        return
    answer = _call("UriChecker", "check accepts a URI that opens", lambda: kind.check(uri))
    _require(answer is None, "UriChecker", "check returns None and raises RequestError", answer)
    wrong = f"{uri}{'&' if '?' in uri else '?'}no_such_parameter=1"
    try:
        kind.check(wrong)
    except AvqError:
        return
    except Exception as error:
        _require(False, "UriChecker", "check raises RequestError only", f"{type(error).__name__}: {error}")


def _names(thing: object, protocols: Sequence[type]) -> tuple[str, ...]:
    """Names of the protocols that ``thing`` has; PluginError when it has some members of one only."""
    names = []
    for protocol in protocols:
        members = [name for name in vars(protocol) if not name.startswith("_")]
        missing = [name for name in members if not hasattr(thing, name)]
        if 0 < len(missing) < len(members):
            has = ", ".join(name for name in members if name not in missing)
            _require(
                False,
                protocol.__name__,
                f"it has all of {', '.join(members)}",
                f"{has} without {', '.join(missing)}",
            )
        if isinstance(thing, protocol):
            names.append(protocol.__name__)
    return tuple(names)


def _must_refuse(protocol: str, what: str, call: Callable[[], object]) -> None:
    try:
        answer = call()
    except RequestError:
        return
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    _require(False, protocol, f"{what} raises RequestError", answer)


def _call(protocol: str, promise: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        _require(False, protocol, promise, f"{type(error).__name__}: {error}")


def _require(good: bool, protocol: str, promise: str, seen: object) -> None:
    if not good:
        raise PluginError(
            f"the contract of {protocol} is broken: {promise}",
            seen=str(seen)[:200],
            fix=f"see avq.{protocol} and its section in docs/plugins.md",
        )


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _texts(values: object) -> bool:
    return isinstance(values, tuple) and all(_text(value) for value in values)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
