"""``avq compile``: prepare a bundle on the machine that serves it, without pictures and without the onnx package.

The serving bundle stays in place until the new engine has passed the golden frames and the timing. Then one rename
replaces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TypedDict

import msgspec

from avq import __version__
from avq.bundle import (
    ENGINE_PREFIX,
    SIGNATURE,
    EngineUse,
    Manifest,
    OpenBundle,
    discard,
    open_bundle,
    publish,
    read_trust,
    require_replaceable,
    staging_folder,
    write_staged,
)
from avq.bundle.engines import ENGINES, EngineKey, engine_keys, engine_name, engines_part
from avq.bundle.reader import answers
from avq.commands.compile_engine import (
    CompileResult,
    Method,
    build_and_verify,
    engine_source,
    float_precision,
)
from avq.engines.cpu import instruction_set
from avq.errors import MachineError, RefusedError, RequestError, nearest
from avq.hookspecs import Engine
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import TARGETS, TimeAnswer

_ON_TARGET = "on target: "
_NOT_TIMED = "time was not measured"


class GoldenJson(TypedDict):
    """Comparison with the golden outputs; decibels are null where boxes were compared."""

    frames: int
    worst_sqnr_db: float | None
    limit_db: float | None


class CompileJson(TypedDict):
    """Object of ``avq compile --json``."""

    bundle: str
    target: str
    engine: str
    version: str
    architecture: str
    road: str
    precision: str
    accepted: bool
    time_verdict: TimeAnswer
    golden: GoldenJson
    p50_ms: float
    p99_ms: float
    ratio: list[float] | None
    build_s: float
    reasons: list[str]
    signature: str


def compile_bundle(
    path: Path,
    *,
    target: str | None,
    output: Path | None,
    budget_ms: float | None,
    trusted: Sequence[Path],
    calibrate: Method | None = None,
    dla_core: int | None = None,
    data: Path | None = None,
    host: PluginHost,
    report: Reporter,
) -> CompileJson:
    """Build, verify and time an engine, and put it into the bundle if it is accepted.

    Args:
        path: the bundle.
        target: engine to compile for; None takes the bundle's target.
        output: bundle folder to write; None replaces ``path``.
        budget_ms: limit for the engine's p50.
        trusted: public keys; if given, one of them must have signed the bundle.
        calibrate: let TensorRT 10 calibrate on the pictures in ``data``.
        dla_core: build for this DLA core, with the GPU for unsupported layers.
        data: folder of pictures for ``calibrate``.
        host: loaded plugins.
        report: progress.

    Returns:
        The object of ``avq compile --json``. Nothing changes on disk unless ``accepted``.

    Raises:
        RefusedError: the gate refused the bundle; no engine can correct that.
        MachineError: the target does not run on this machine.
        RequestError: unknown target, or one with another integer encoding than the bundle.
    """
    destination = path if output is None else output
    require_replaceable(destination)
    bundle = open_bundle(path, allow_unaccepted=True, trust=read_trust(trusted) if trusted else None)
    _require_accuracy(bundle)
    bundle.verify()
    target_name = target or bundle.manifest.target
    engine = _engine(bundle, target_name, host)
    signed = (destination / SIGNATURE).exists()
    source = engine_source(bundle, engine, calibrate=calibrate, dla_core=dla_core, data=data, report=report)
    result = build_and_verify(
        bundle, engine, source, budget_ms=budget_ms, families=host.decoders(), report=report
    )
    if result.accepted:
        _replace(bundle, destination, target_name, engine, result)
    return {
        "bundle": str(destination),
        "target": target_name,
        "engine": engine.name,
        "version": engine.status().version,
        "architecture": result.key.architecture if result.key else "",
        "road": source.flags or "the file's own types",
        "precision": result.precision,
        "accepted": result.accepted,
        "time_verdict": result.time,
        "golden": {
            "frames": result.golden.frames,
            "worst_sqnr_db": result.golden.worst_sqnr_db,
            "limit_db": result.golden.limit_db,
        },
        "p50_ms": result.p50_ms,
        "p99_ms": result.p99_ms,
        "ratio": list(result.ratio) if result.ratio else None,
        "build_s": round(result.build_s, 1),
        "reasons": list(result.reasons),
        "signature": _signature(signed=signed, written=result.accepted),
    }


def footer(answer: CompileJson) -> list[str]:
    """Return the lines to print below the result."""
    head = "accepted" if answer["accepted"] else "NOT accepted; nothing was changed"
    lines = [f"{head}: {answer['engine']} {answer['version']} {answer['architecture']}".rstrip()]
    lines += [f"  {reason}" for reason in answer["reasons"]]
    return [*lines, f"signature: {answer['signature']}", f"bundle: {answer['bundle']}"]


def _signature(*, signed: bool, written: bool) -> str:
    if not signed:
        return "none"
    return "dropped, it signed the previous manifest: sign the bundle again" if written else "kept"


def _require_accuracy(bundle: OpenBundle) -> None:
    if bundle.manifest.accepted is False:
        raise RefusedError(
            f"the bundle {bundle.path} was not accepted by its gate{answers(bundle.manifest)}",
            seen="; ".join(bundle.manifest.reasons) or "no reasons recorded",
            fix="build a bundle that the gate accepts: compiling changes neither its boxes nor the gate's answer",
        )


def _engine(bundle: OpenBundle, target: str, host: PluginHost) -> Engine:
    """Return the engine of ``target``; for cpu, the engine that the bundle was accepted on."""
    known = {engine.name: engine for engine in host.engines()}
    if target not in TARGETS and target not in known:
        raise RequestError(f"unknown target '{target}'", fix=nearest(target, (*TARGETS, *known)))
    name = bundle.manifest.engine.name if target == "cpu" else target
    engine = known.get(name)
    status = engine.status() if engine is not None else None
    if engine is None or status is None or not status.can_run:
        raise MachineError(
            f"{name} cannot run on this machine",
            seen=status.why if status is not None else "no plugin provides it",
            fix="run avq compile on the machine that will serve; avq doctor lists what is missing",
        )
    encoding = bundle.manifest.engine.encoding
    if encoding and encoding not in engine.encodings():
        raise RequestError(
            f"{name} does not take the integer encoding of this bundle",
            seen=f"bundle: {encoding}; {name}: {', '.join(engine.encodings())}",
            fix=f"build the bundle for this target: avq build ... --target {target}",
        )
    return engine


def _replace(
    bundle: OpenBundle, destination: Path, target: str, engine: Engine, result: CompileResult
) -> None:
    """Write the new bundle to a staging folder, then replace ``destination`` by one rename."""
    staging = staging_folder(destination)
    keys = _reusable_keys(bundle, engine)
    kept = [n for n in bundle.manifest.parts if n in keys or not n.startswith(ENGINE_PREFIX)]
    parts: dict[str, bytes | Path] = {name: bundle.read(name) for name in kept if name != ENGINES}
    if result.key is not None:
        name = engine_name(result.key.architecture)
        keys[name], parts[name] = result.key, result.data
    if keys:
        parts[ENGINES] = engines_part(keys)
    try:
        write_staged(staging, _manifest(bundle, target, engine, result), parts)
        publish(staging, destination)
    finally:
        discard(staging)


def _reusable_keys(bundle: OpenBundle, engine: Engine) -> dict[str, EngineKey]:
    """Return the engines of the same runtime and release, for any GPU; others would never be used."""
    current = (engine.name, engine.status().version)
    return {name: key for name, key in engine_keys(bundle).items() if (key.runtime, key.version) == current}


def _manifest(bundle: OpenBundle, target: str, engine: Engine, result: CompileResult) -> Manifest:
    old = bundle.manifest
    previous = (r for r in old.reasons if not r.startswith((_ON_TARGET, _NOT_TIMED)))
    figures = {"p50_ms": result.p50_ms, "p99_ms": result.p99_ms, "ratio": result.ratio}
    return msgspec.structs.replace(
        old,
        avq_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        accepted=True,
        time_verdict=result.time,
        target=target,
        engine=EngineUse(
            name=engine.name,
            version=engine.status().version,
            precision=result.precision,
            float_precision=float_precision(engine, old.engine),
            threads=old.engine.threads,
            encoding=old.engine.encoding,
        ),
        isa="" if result.key is not None else instruction_set(),
        reasons=(*previous, *(f"{_ON_TARGET}{reason}" for reason in result.reasons)),
        metrics={**old.metrics, "on_target": figures},
        parts={},
        digest="",
    )
