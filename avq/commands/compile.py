"""``avq compile``: a bundle made ready on the machine that runs it. Needs no pictures and no onnx package.

The engine that serves stays where it is until the new one has answered the golden frames and was timed; then the two
folders change places in one step.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from avq import __version__
from avq.bundle import (
    ENGINE_PREFIX,
    SIGNATURE,
    EngineUse,
    Manifest,
    OpenBundle,
    open_bundle,
    publish,
    read_trust,
    require_replaceable,
    staging_folder,
    write_staged,
)
from avq.bundle.engines import ENGINES, EngineKey, engine_keys, engine_name, engines_part
from avq.commands.compile_engine import Method, Proof, float_precision, prove, road_of
from avq.engines.cpu import instruction_set
from avq.errors import MachineError, RefusedError, RequestError, nearest
from avq.hookspecs import Engine
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import TARGETS

_HERE = "on target: "
_UNTIMED = "time was not measured"


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
) -> dict[str, Any]:
    """The keys of ``avq compile --json``; nothing changes on disk unless ``accepted``.

    Args:
        target: None takes what the bundle was built for.
        output: None replaces the bundle in its place.
        budget_ms: wanted p50 of the engine.
        trusted: public keys; when given, the bundle must be signed by one of them.
        calibrate: let TensorRT 10 calibrate itself, on the pictures in ``data``.
        dla_core: build for this DLA core, what it cannot do on the GPU.

    Raises:
        RefusedError: the bundle's gate refused it: no engine makes it right.
        MachineError: the target does not run here.
        RequestError: an unknown target, or one that reads the bundle's numbers differently.
    """
    place = path if output is None else output
    require_replaceable(place)
    bundle = open_bundle(path, allow_unaccepted=True, trust=read_trust(trusted) if trusted else None)
    _require_right(bundle)
    bundle.verify()
    wanted = target or bundle.manifest.target
    engine = _engine(bundle, wanted, host)
    signed = (place / SIGNATURE).exists()
    road = road_of(bundle, engine, calibrate=calibrate, dla_core=dla_core, data=data, report=report)
    proof = prove(bundle, engine, road, budget_ms=budget_ms, families=host.decoders(), report=report)
    if proof.accepted:
        _put(bundle, place, wanted, engine, proof)
    return {
        "bundle": str(place),
        "target": wanted,
        "engine": engine.name,
        "version": engine.status().version,
        "architecture": proof.key.architecture if proof.key else "",
        "road": road.flags or "the file's own types",
        "precision": proof.precision,
        "accepted": proof.accepted,
        "golden": {
            "frames": proof.golden.frames,
            "worst_sqnr_db": proof.golden.worst_sqnr_db,
            "limit_db": proof.golden.limit_db,
        },
        "p50_ms": proof.p50_ms,
        "p99_ms": proof.p99_ms,
        "ratio": list(proof.ratio) if proof.ratio else None,
        "build_s": round(proof.build_s, 1),
        "reasons": list(proof.reasons),
        "signature": _signature(signed=signed, written=proof.accepted),
    }


def closing(answer: Mapping[str, Any]) -> list[str]:
    """What a person reads last."""
    head = "accepted" if answer["accepted"] else "NOT accepted; nothing was changed"
    lines = [f"{head}: {answer['engine']} {answer['version']} {answer['architecture']}".rstrip()]
    lines += [f"  {reason}" for reason in answer["reasons"]]
    return [*lines, f"signature: {answer['signature']}", f"bundle: {answer['bundle']}"]


def _signature(*, signed: bool, written: bool) -> str:
    if not signed:
        return "none"
    return "dropped, as it vouched for the old manifest: sign the bundle again" if written else "kept"


def _require_right(bundle: OpenBundle) -> None:
    if bundle.manifest.accepted is False:
        raise RefusedError(
            f"the bundle {bundle.path} was not accepted by its gate",
            seen="; ".join(bundle.manifest.reasons) or "no reasons given",
            fix="build a better one: compiling makes it faster, not right",
        )


def _engine(bundle: OpenBundle, target: str, host: PluginHost) -> Engine:
    """The engine of ``target``; for cpu, the one that the bundle was accepted on."""
    known = {engine.name: engine for engine in host.engines()}
    if target not in TARGETS and target not in known:
        raise RequestError(f"no target named '{target}'", fix=nearest(target, (*TARGETS, *known)))
    name = bundle.manifest.engine.name if target == "cpu" else target
    engine = known.get(name)
    status = engine.status() if engine is not None else None
    if engine is None or status is None or not status.can_run:
        raise MachineError(
            f"{name} cannot run on this machine",
            seen=status.why if status is not None else "no plugin brings it",
            fix="run avq compile on the machine that will serve; avq doctor says what is missing",
        )
    encoding = bundle.manifest.engine.encoding
    if encoding and encoding not in engine.encodings():
        raise RequestError(
            f"{name} reads the bundle's numbers differently",
            seen=f"built with {encoding} data, {name} takes {', '.join(engine.encodings())}",
            fix=f"build it for this target: avq build ... --target {target}",
        )
    return engine


def _put(bundle: OpenBundle, place: Path, target: str, engine: Engine, proof: Proof) -> None:
    """Write beside the old one, then change places."""
    staging = staging_folder(place)
    keys = _kept_keys(bundle, engine)
    kept = [n for n in bundle.manifest.parts if n in keys or not n.startswith(ENGINE_PREFIX)]
    parts: dict[str, bytes | Path] = {name: bundle.read(name) for name in kept if name != ENGINES}
    if proof.key is not None:
        name = engine_name(proof.key.architecture)
        keys[name], parts[name] = proof.key, proof.data
    if keys:
        parts[ENGINES] = engines_part(keys)
    try:
        write_staged(staging, _manifest(bundle, target, engine, proof), parts)
        publish(staging, place)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _kept_keys(bundle: OpenBundle, engine: Engine) -> dict[str, EngineKey]:
    """Engines of other cards stay; those of another runtime or release would never be used."""
    here = (engine.name, engine.status().version)
    return {name: key for name, key in engine_keys(bundle).items() if (key.runtime, key.version) == here}


def _manifest(bundle: OpenBundle, target: str, engine: Engine, proof: Proof) -> Manifest:
    old = bundle.manifest
    before = (r for r in old.reasons if not r.startswith((_HERE, _UNTIMED)))
    figures = {"p50_ms": proof.p50_ms, "p99_ms": proof.p99_ms, "ratio": proof.ratio}
    return msgspec.structs.replace(
        old,
        avq_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        accepted=True,
        target=target,
        engine=EngineUse(
            name=engine.name,
            version=engine.status().version,
            precision=proof.precision,
            float_precision=float_precision(engine, old.engine),
            threads=old.engine.threads,
            encoding=old.engine.encoding,
        ),
        isa="" if proof.key is not None else instruction_set(),
        reasons=(*before, *(f"{_HERE}{reason}" for reason in proof.reasons)),
        metrics={**old.metrics, "on_target": figures},
        parts={},
        digest="",
    )
