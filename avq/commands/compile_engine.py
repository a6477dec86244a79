"""What an engine did on this machine: built or taken over, asked the golden frames, timed against its FP16 twin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avq import __version__
from avq.builder.gate import MAX_SLOWDOWN
from avq.builder.pictures.dataset import CalibrationSet, open_set, read_picture
from avq.bundle import (
    IMPLICIT,
    IMPLICIT_CACHE,
    IMPLICIT_PRECISIONS,
    MODEL,
    PLAN_ARRAYS,
    PLAN_JSON,
    TWIN,
    EngineUse,
    OpenBundle,
)
from avq.bundle.engines import EngineKey, differences, engine_keys, engine_name, wanted_key
from avq.bundle.plan import plan_from_parts
from avq.engines.cache import ArtifactCache, cache_folder
from avq.engines.tensorrt_build import BuildOptions, Calibration
from avq.errors import RequestError
from avq.hookspecs import CompilingEngine, Decoder, Engine, PlannedSession, Session
from avq.measure.golden import GoldenAnswer, golden_inputs, run_golden
from avq.measure.latency import paired_latency, ratio_interval
from avq.preprocess import Preprocessor, spec_to_json
from avq.progress import Reporter
from avq.types import U8, EnginePrecision, PreprocessSpec, SessionOptions

# Which way a model takes to an engine: its own types, or, with TensorRT 10, ranges from a calibrator
# and DLA.

Method = Literal["entropy", "minmax"]


@dataclass(frozen=True)
class Road:
    """What is built, and how.

    Attributes:
        options: None takes the file's own types.
        flags: the same for a key; '' for the file's own types.
    """

    model: bytes
    options: BuildOptions | None = None
    flags: str = ""


def road_of(
    bundle: OpenBundle,
    engine: Engine,
    *,
    calibrate: Method | None,
    dla_core: int | None,
    data: Path | None,
    report: Reporter,
) -> Road:
    """The road that was asked for.

    Args:
        calibrate: let TensorRT 10 calibrate itself on the pictures in ``data``.
        dla_core: with the ranges of the bundle's own plan, unless ``calibrate`` says otherwise.

    Raises:
        RequestError: the bundle has no parts for it, or pictures are missing.
    """
    if calibrate is None and dla_core is None:
        return Road(bundle.read(MODEL))
    if not bundle.has(IMPLICIT):
        raise RequestError(
            f"the bundle {bundle.path} was built for Q/DQ alone",
            seen=f"no part '{IMPLICIT}'",
            fix="build it again with --dla, which adds what DLA and TensorRT 10's own calibration take",
        )
    precisions: dict[str, str] = json.loads(bundle.read(IMPLICIT_PRECISIONS))
    calibration = (
        Calibration(cache=bundle.read(IMPLICIT_CACHE))
        if calibrate is None
        else _own_calibration(bundle, engine, calibrate, data, report)
    )
    options = BuildOptions(calibration=calibration, layer_precisions=precisions, dla_core=dla_core)
    by = f"calibrated by {calibrate}" if calibrate else "ranges of the plan"
    return Road(bundle.read(IMPLICIT), options, by + (f", DLA {dla_core}" if dla_core is not None else ""))


def _own_calibration(
    bundle: OpenBundle, engine: Engine, method: Method, data: Path | None, report: Reporter
) -> Calibration:
    """TensorRT's calibrator, fed as the daemon feeds the engine; a cache of the very same is read instead."""
    spec = bundle.manifest.preprocess
    if data is None or spec is None:
        raise RequestError(
            "there are no pictures to calibrate with",
            seen="--data is missing" if data is None else "the bundle takes no pictures",
            fix=f"avq compile {bundle.path} --calibrate {method} --data FOLDER",
        )
    pictures = open_set(data, report)
    key = _calibration_key(bundle, engine, method, spec, pictures)
    store = ArtifactCache(cache_folder("tensorrt-calibration"))
    kept, why = store.get(key)
    report.message(f"calibration cache {'read' if kept is not None else 'not used'}: {why}")
    return Calibration(method, _inputs(pictures, spec), kept or b"", keep=lambda cache: store.put(key, cache))


def _calibration_key(
    bundle: OpenBundle, engine: Engine, method: Method, spec: PreprocessSpec, pictures: CalibrationSet
) -> dict[str, str]:
    images = hashlib.sha256("".join(sorted(item.sha256 for item in pictures.items)).encode())
    return {
        "model": bundle.manifest.parts[IMPLICIT].sha256,
        "preprocess": hashlib.sha256(json.dumps(spec_to_json(spec), sort_keys=True).encode()).hexdigest(),
        "images": images.hexdigest(),
        "algorithm": method,
        "runtime": f"{engine.name} {engine.status().version}",
        "architecture": engine.architecture() if isinstance(engine, CompilingEngine) else "",
        "avq": __version__,
    }


def _inputs(pictures: CalibrationSet, spec: PreprocessSpec) -> Iterator[U8]:
    preprocessor = Preprocessor(spec)
    for item in pictures.items:
        yield preprocessor.prepare(read_picture(item)).tensor.copy()


ROUNDS = 100
#: p50 and p99 in milliseconds, and the paired ratio to the FP16 twin where there is one.
_Times = tuple[float, float, "tuple[float, float, float] | None"]


@dataclass(frozen=True)
class Proof:
    """What the new engine did here.

    Attributes:
        key: what it was built from; None for engines that open the model itself.
        data: the engine; b'' where there is no key.
        build_s: 0 for one that was taken over.
        ratio: (median, low, high) of its time over its float twin's; None without a twin.
        reasons: for and against, in the order checked.
    """

    key: EngineKey | None
    data: bytes
    build_s: float
    precision: str
    golden: GoldenAnswer
    p50_ms: float
    p99_ms: float
    ratio: tuple[float, float, float] | None
    reasons: tuple[str, ...]
    accepted: bool


@dataclass(frozen=True)
class _Ready:
    """An engine before it is opened; ``key`` None: the engine opens the model itself."""

    key: EngineKey | None
    data: bytes
    build_s: float
    said: tuple[str, ...] = ()


def prove(
    bundle: OpenBundle,
    engine: Engine,
    road: Road,
    *,
    budget_ms: float | None,
    families: Sequence[Decoder],
    report: Reporter,
) -> Proof:
    """Build (or take over what was built from the very same), ask the golden frames, time."""
    use = bundle.manifest.engine
    ready = _ready(bundle, engine, road, report)
    session = _open(engine, ready, bundle, use)
    try:
        said = (*ready.said, *_left_float(bundle, session))
        report.message("asking the golden frames")
        golden = run_golden(bundle, session, families)
        reasons, accepted = (*said, golden.why), False
        times: _Times = (0.0, 0.0, None)
        if golden.right:
            times = _time(bundle, engine, session, report)
            accepted, told = _fast_enough(times[0], times[2], budget_ms)
            reasons = (*reasons, *told)
        return Proof(
            ready.key, ready.data, ready.build_s, session.precision, golden, *times, reasons, accepted
        )
    finally:
        session.close()


def float_precision(engine: Engine, use: EngineUse) -> EnginePrecision:
    """What the float parts run in, in a precision that ``engine`` has."""
    known = engine.float_precisions
    return use.float_precision if use.float_precision in known or not known else known[0]


def _ready(bundle: OpenBundle, engine: Engine, road: Road, report: Reporter) -> _Ready:
    if not isinstance(engine, CompilingEngine):
        if road.options is not None:
            raise RequestError(
                f"{engine.name} has no other road than its model's own types",
                seen=road.flags,
                fix="drop --calibrate and --dla-core, or --target tensorrt",
            )
        report.message(f"{engine.name}: opening the model")
        return _Ready(None, b"", 0.0)
    version = engine.status().version
    wanted = wanted_key(bundle, engine.name, version, engine.architecture(), road.flags)
    kept, why = _taken_over(bundle, wanted)
    report.message(why)
    if kept is not None:
        return _Ready(wanted, kept, 0.0, (why,))
    report.message(f"{engine.name}: building the engine for {wanted.architecture}; this takes minutes")
    built = engine.compile(road.model, wanted.architecture, road.options, report.message)
    report.message(f"built in {built.seconds:.0f} s, {len(built.data) // 1024} kB")
    return _Ready(wanted, built.data, built.seconds)


def _taken_over(bundle: OpenBundle, wanted: EngineKey) -> tuple[bytes | None, str]:
    """The bundle's engine when it was built from the very same; else what differs."""
    name = engine_name(wanted.architecture)
    kept = engine_keys(bundle).get(name)
    if kept is None:
        return None, f"the bundle holds no engine for {wanted.architecture}"
    differing = differences(kept, wanted)
    if differing:
        return None, f"{name} is not used again: {'; '.join(differing)}"
    return bundle.read(name), f"{name} is used as it is: nothing it depends on has changed"


def _open(engine: Engine, ready: _Ready, bundle: OpenBundle, use: EngineUse) -> Session:
    if ready.key is not None and isinstance(engine, CompilingEngine):
        return engine.open_engine(ready.data, use.precision)
    return engine.open(bundle.read("model.onnx"), _options(engine, use))


def _options(engine: Engine, use: EngineUse) -> SessionOptions:
    return SessionOptions(threads=use.threads, precision=float_precision(engine, use))


def _left_float(bundle: OpenBundle, session: Session) -> tuple[str, ...]:
    """What the engine's inspector tells against the plan; ModelError for layers that silently stayed in FP32."""
    if not isinstance(session, PlannedSession) or not bundle.has(PLAN_JSON):
        return ()
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    slower = session.require_planned({name: choice.precision for name, choice in plan.precisions.items()})
    return (f"{len(slower)} layers run in FP16, planned in INT8: {', '.join(slower[:6])}",) if slower else ()


def _time(bundle: OpenBundle, engine: Engine, session: Session, report: Reporter) -> _Times:
    """(p50, p99, paired ratio to the float twin); without a twin no ratio."""
    tensor = golden_inputs(bundle)[0]
    runs: dict[str, Callable[[], object]] = {"new": lambda: session.infer(tensor)}
    twin = _twin(bundle, engine, report) if bundle.has(TWIN) else None
    if twin is not None:
        runs["twin"] = lambda: twin.infer(tensor)
    report.message(f"timing {ROUNDS} rounds" + (" against FP16, taking turns" if twin else ""))
    try:
        samples = paired_latency(runs, rounds=ROUNDS)
    finally:
        if twin is not None:
            twin.close()
    ratio = ratio_interval(samples["new"], samples["twin"]) if twin is not None else None
    return samples["new"].p50_ms, samples["new"].p99_ms, ratio


def _twin(bundle: OpenBundle, engine: Engine, report: Reporter) -> Session:
    """The same network without INT8, built here for the comparison alone."""
    model, use = bundle.read(TWIN), bundle.manifest.engine
    if not isinstance(engine, CompilingEngine):
        return engine.open(model, _options(engine, use))
    report.message("building the FP16 engine to compare with")
    built = engine.compile(model, engine.architecture(), None, report.message)
    return engine.open_engine(built.data, "f16")


def _fast_enough(
    p50_ms: float, ratio: tuple[float, float, float] | None, budget_ms: float | None
) -> tuple[bool, list[str]]:
    ok, reasons = True, [f"p50 {p50_ms:.2f} ms"]
    if ratio is None:
        reasons[0] += "; not compared: the bundle holds no FP16 twin"
    else:
        slower = ratio[1] > MAX_SLOWDOWN
        ok = not slower
        interval = f"95 % interval {ratio[1]:.2f} to {ratio[2]:.2f}, paired"
        reasons.append(f"{ratio[0]:.2f}x the time of FP16 ({interval}){': slower' if slower else ''}")
    if budget_ms is not None:
        inside = p50_ms <= budget_ms
        ok = ok and inside
        reasons.append(f"budget {budget_ms:g} ms: {'inside' if inside else 'over'}")
    return ok, reasons
