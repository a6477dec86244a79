"""Build or reuse an engine on this machine, verify it on the golden frames, and time it against FP16."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avq import __version__
from avq.builder.answers import time_answer, time_words, worst
from avq.builder.pictures.dataset import CalibrationSet, open_calibrating_set, read_picture
from avq.bundle import (
    FP16_BASELINE,
    IMPLICIT,
    IMPLICIT_CACHE,
    IMPLICIT_PRECISIONS,
    MODEL,
    PLAN_ARRAYS,
    PLAN_JSON,
    EngineUse,
    OpenBundle,
)
from avq.bundle.engines import EngineKey, differences, engine_keys, engine_name, wanted_key
from avq.bundle.plan import plan_from_parts
from avq.engines.cache import ArtifactCache, cache_folder
from avq.engines.tensorrt_build import BuildOptions, Calibration
from avq.errors import RequestError
from avq.hookspecs import CompilingEngine, Decoder, Engine, PlannedSession, Session
from avq.measure.golden import GoldenResult, golden_inputs, run_golden
from avq.measure.latency import Pair, latency_of, paired_latency, timed_until
from avq.preprocess import Preprocessor, spec_to_json
from avq.progress import Reporter
from avq.types import U8, Answer, EnginePrecision, Latency, PreprocessSpec, SessionOptions, TimeAnswer

# What an engine is built from: Q/DQ and types in the file, or, with TensorRT 10, a network without Q/DQ, ranges
# from a calibrator, and DLA.

Method = Literal["entropy", "minmax"]


@dataclass(frozen=True)
class EngineSource:
    """The model to build an engine from, and how to build it.

    Attributes:
        model: bytes of the ONNX model.
        options: None builds the types that the model states.
        flags: ``options`` in words, part of the engine's key; '' where ``options`` is None.
    """

    model: bytes
    options: BuildOptions | None = None
    flags: str = ""


def engine_source(
    bundle: OpenBundle,
    engine: Engine,
    *,
    calibrate: Method | None,
    dla_core: int | None,
    data: Path | None,
    report: Reporter,
) -> EngineSource:
    """Choose what to build the engine from.

    Args:
        bundle: the bundle to compile.
        engine: the engine that compiles it.
        calibrate: let TensorRT 10 calibrate on the pictures in ``data``.
        dla_core: build for this DLA core, with the ranges of the plan unless ``calibrate`` is given.
        data: folder of pictures for ``calibrate``.
        report: progress.

    Raises:
        RequestError: the bundle has no parts for DLA or calibration, or ``data`` is missing.
    """
    if calibrate is None and dla_core is None:
        return EngineSource(bundle.read(MODEL))
    if not bundle.has(IMPLICIT):
        raise RequestError(
            f"bundle {bundle.path} has no parts for --calibrate and --dla-core",
            seen=f"no part '{IMPLICIT}'",
            fix="build it again with avq build --dla",
        )
    precisions: dict[str, str] = json.loads(bundle.read(IMPLICIT_PRECISIONS))
    calibration = (
        Calibration(cache=bundle.read(IMPLICIT_CACHE))
        if calibrate is None
        else _tensorrt_calibration(bundle, engine, calibrate, data, report)
    )
    options = BuildOptions(calibration=calibration, layer_precisions=precisions, dla_core=dla_core)
    ranges = f"calibrated by {calibrate}" if calibrate else "ranges of the plan"
    return EngineSource(
        bundle.read(IMPLICIT), options, ranges + (f", DLA {dla_core}" if dla_core is not None else "")
    )


def _tensorrt_calibration(
    bundle: OpenBundle, engine: Engine, method: Method, data: Path | None, report: Reporter
) -> Calibration:
    """Return a calibration on preprocessed pictures, or on the cache of an identical earlier calibration."""
    spec = bundle.manifest.preprocess
    if data is None or spec is None:
        raise RequestError(
            f"--calibrate {method} has no pictures",
            seen="no --data" if data is None else "the bundle has no preprocessing",
            fix=f"avq compile {bundle.path} --calibrate {method} --data FOLDER",
        )
    pictures = open_calibrating_set(data, report)
    key = _calibration_key(bundle, engine, method, spec, pictures)
    store = ArtifactCache(cache_folder("tensorrt-calibration"))
    cached, why = store.get(key)
    report.message(f"calibration cache {'read' if cached is not None else 'not used'}: {why}")
    return Calibration(
        method, _inputs(pictures, spec), cached or b"", keep=lambda cache: store.put(key, cache)
    )


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
_FP16 = "FP16"


@dataclass(frozen=True)
class CompileResult:
    """An engine of this machine, and its measured results.

    Attributes:
        key: what the engine was built from; None for engines that open the model itself.
        data: the engine; b'' where ``key`` is None.
        build_s: build time in seconds; 0 for a reused engine.
        precision: what the engine runs in, as its session reports it.
        golden: comparison with the golden outputs of the bundle.
        latency: paired with the FP16 baseline; None where the golden frames failed.
        reasons: for and against acceptance, in the order of the checks.
        time: the answer on time; "not judged" without a baseline and a budget.
    """

    key: EngineKey | None
    data: bytes
    build_s: float
    precision: str
    golden: GoldenResult
    latency: Latency | None
    reasons: tuple[str, ...]
    time: TimeAnswer

    @property
    def accepted(self) -> bool:
        """Whether the engine may serve."""
        return self.golden.passed and self.time in ("yes", "not judged")

    @property
    def p50_ms(self) -> float:
        """Median latency in milliseconds; 0 where the golden frames failed."""
        return self.latency.p50_ms if self.latency is not None else 0.0

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency in milliseconds; 0 where the golden frames failed."""
        return self.latency.p99_ms if self.latency is not None else 0.0

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """(median, low, high) of its latency over the FP16 baseline's; None without a baseline."""
        latency = self.latency
        if latency is None or not latency.float_engine:
            return None
        return latency.ratio, latency.ratio_low, latency.ratio_high


@dataclass(frozen=True)
class _Compiled:
    """An engine before it is opened; ``key`` None: the engine opens the model itself."""

    key: EngineKey | None
    data: bytes
    build_s: float
    reasons: tuple[str, ...] = ()


def build_and_verify(
    bundle: OpenBundle,
    engine: Engine,
    source: EngineSource,
    *,
    budget_ms: float | None,
    families: Sequence[Decoder],
    report: Reporter,
) -> CompileResult:
    """Build the engine or reuse the bundle's, compare it on the golden frames, and time it.

    Args:
        bundle: the bundle to compile.
        engine: the engine to run it on.
        source: what to build from.
        budget_ms: limit for p50, in milliseconds.
        families: decoders of plugins, for golden outputs that are boxes.
        report: progress.

    Raises:
        RequestError: ``source`` has options, and ``engine`` takes none.
        ModelError: layers planned in INT8 or FP16 run in FP32.
    """
    use = bundle.manifest.engine
    compiled = _reuse_or_build(bundle, engine, source, report)
    session = _open(engine, compiled, bundle, use)
    try:
        report.message("comparing with the golden frames")
        golden = run_golden(bundle, session, families)
        reasons = (*compiled.reasons, *_layers_in_fp16(bundle, session), golden.reason)
        latency, time = None, _NOT_JUDGED
        if golden.passed:
            latency = _time(bundle, engine, session, report)
            time, speed = _judge_speed(latency, budget_ms)
            reasons = (*reasons, *speed)
        return CompileResult(
            compiled.key,
            compiled.data,
            compiled.build_s,
            session.precision,
            golden,
            latency,
            reasons,
            time,
        )
    finally:
        session.close()


def float_precision(engine: Engine, use: EngineUse) -> EnginePrecision:
    """Return the precision of the float parts: the bundle's, or the first that ``engine`` supports."""
    supported = engine.float_precisions
    return use.float_precision if use.float_precision in supported or not supported else supported[0]


def _reuse_or_build(bundle: OpenBundle, engine: Engine, source: EngineSource, report: Reporter) -> _Compiled:
    if not isinstance(engine, CompilingEngine):
        if source.options is not None:
            raise RequestError(
                f"{engine.name} takes neither --calibrate nor --dla-core",
                seen=source.flags,
                fix="drop these flags, or give --target tensorrt",
            )
        report.message(f"{engine.name}: opening the model")
        return _Compiled(None, b"", 0.0)
    version = engine.status().version
    key = wanted_key(bundle, engine.name, version, engine.architecture(), source.flags)
    existing, why = _reusable(bundle, key)
    report.message(why)
    if existing is not None:
        return _Compiled(key, existing, 0.0, (why,))
    report.message(f"{engine.name}: building the engine for {key.architecture}; this takes minutes")
    built = engine.compile(source.model, key.architecture, source.options, report.message)
    report.message(f"built in {built.seconds:.0f} s, {len(built.data) // 1024} kB")
    return _Compiled(key, built.data, built.seconds)


def _reusable(bundle: OpenBundle, key: EngineKey) -> tuple[bytes | None, str]:
    """Return the bundle's engine if it has the same key, and why or why not."""
    name = engine_name(key.architecture)
    existing = engine_keys(bundle).get(name)
    if existing is None:
        return None, f"the bundle holds no engine for {key.architecture}"
    changed = differences(existing, key)
    if changed:
        return None, f"{name} is not reused: {'; '.join(changed)}"
    return bundle.read(name), f"{name} is reused: nothing it depends on has changed"


def _open(engine: Engine, compiled: _Compiled, bundle: OpenBundle, use: EngineUse) -> Session:
    if compiled.key is not None and isinstance(engine, CompilingEngine):
        return engine.open_engine(compiled.data, use.precision)
    return engine.open(bundle.read(MODEL), _options(engine, use))


def _options(engine: Engine, use: EngineUse) -> SessionOptions:
    return SessionOptions(threads=use.threads, precision=float_precision(engine, use))


def _layers_in_fp16(bundle: OpenBundle, session: Session) -> tuple[str, ...]:
    """Name the layers that run in FP16 though planned in INT8; ModelError for layers in FP32."""
    if not isinstance(session, PlannedSession) or not bundle.has(PLAN_JSON):
        return ()
    plan = plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
    slower = session.require_planned({name: choice.precision for name, choice in plan.precisions.items()})
    return (f"{len(slower)} layers run in FP16, planned in INT8: {', '.join(slower[:6])}",) if slower else ()


def _time(bundle: OpenBundle, engine: Engine, session: Session, report: Reporter) -> Latency:
    """Return p50, p99 and the paired ratio to the FP16 baseline, if there is one."""
    tensor = golden_inputs(bundle)[0]
    own: Callable[[], object] = lambda: session.infer(tensor)  # noqa: E731
    if not bundle.has(FP16_BASELINE):
        report.message(f"timing {ROUNDS} rounds")
        samples = paired_latency({"new": own}, rounds=ROUNDS)["new"]
        return Latency(samples.p50_ms, samples.p99_ms, *_NO_RATIO, "", rounds=ROUNDS)
    baseline = _fp16_baseline(bundle, engine, report)
    report.message("timing in turns with FP16, until the answer is certain")
    try:
        pair = timed_until(
            lambda pair: time_answer(_paired(pair)) != "cannot tell",
            lambda: nullcontext((own, lambda: baseline.infer(tensor))),
        )
    finally:
        baseline.close()
    return _paired(pair)


_NO_RATIO = (float("nan"), float("nan"), float("nan"))
_NOT_JUDGED: TimeAnswer = "not judged"


def _paired(pair: Pair) -> Latency:
    return latency_of(pair.own, pair.rival, pair.ratio, _FP16)


def _fp16_baseline(bundle: OpenBundle, engine: Engine, report: Reporter) -> Session:
    """Build the same network without INT8, for the comparison only."""
    model, use = bundle.read(FP16_BASELINE), bundle.manifest.engine
    if not isinstance(engine, CompilingEngine):
        return engine.open(model, _options(engine, use))
    report.message("building the FP16 engine to compare with")
    built = engine.compile(model, engine.architecture(), None, report.message)
    return engine.open_engine(built.data, "f16")


def _judge_speed(latency: Latency, budget_ms: float | None) -> tuple[TimeAnswer, list[str]]:
    """Return whether the engine is fast enough, and the reasons."""
    reasons = [f"p50 {latency.p50_ms:.2f} ms"]
    answers: list[Answer] = []
    if not latency.float_engine:
        reasons[0] += "; not compared: the bundle has no FP16 baseline"
    else:
        answers.append(time_answer(latency))
        interval = f"95 % interval {latency.ratio_low:.2f} to {latency.ratio_high:.2f}, paired"
        reasons.append(f"{latency.ratio:.2f}x the time of {_FP16} ({interval}): {time_words(latency)}")
    if budget_ms is not None:
        inside = latency.p50_ms <= budget_ms
        answers.append("yes" if inside else "no")
        reasons.append(f"budget {budget_ms:g} ms: {'inside' if inside else 'over'}")
    return worst(answers) if answers else _NOT_JUDGED, reasons
