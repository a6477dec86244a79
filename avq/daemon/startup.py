"""A start that cannot surprise: golden answers first, and in a failed bundle's place only what is allowed.

Signature, digests, machine and engine are checked by the opener, in that order, before anything is deserialised; a
bundle that takes another's place passes all of it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avq.bundle import GOLDEN, OpenBundle, open_bundle
from avq.daemon.modes import ActiveModes, ModeSource, Opener
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.measure.detector import Detector
from avq.measure.golden import require_golden
from avq.types import EnginePrecision, EngineStatus, SessionOptions

CPU_ENGINE = "onnxruntime"


@dataclass(frozen=True)
class FallbackPolicy:
    """What may serve when the bundle does not start.

    Attributes:
        bundle: the one that served before.
        on_cpu: the bundle's own model on onnxruntime: slower, and right.
    """

    bundle: Path | None = None
    on_cpu: bool = False


def start(
    opener: Opener, sources: Sequence[ModeSource], fallback: FallbackPolicy, warn: Callable[[str], None]
) -> ActiveModes:
    """The ladder of ``sources``; the first of what may serve in its place when a rung of it does not start.

    Args:
        warn: told what failed and what serves in its place.

    Raises:
        AvqError: the first failure, when nothing else was allowed or nothing of it starts.
    """
    opener = replace(opener, on_open=_checked(opener))
    try:
        return opener.ladder(sources)
    except AvqError as error:
        first = error
    for said, attempt in _attempts(opener, sources, fallback):
        try:
            served = attempt()
        except AvqError as error:
            warn(f"{said} does not start either: {_line(error)}")
            continue
        warn(f"{_line(first)}. falling back to {said}")
        return served
    raise first


def _checked(opener: Opener) -> Callable[[OpenBundle, Detector], None]:
    def check(bundle: OpenBundle, detector: Detector) -> None:
        opener.on_open(bundle, detector)
        if bundle.has(GOLDEN):
            require_golden(bundle, detector.session, opener.families)

    return check


def _attempts(
    opener: Opener, sources: Sequence[ModeSource], fallback: FallbackPolicy
) -> Iterator[tuple[str, Callable[[], ActiveModes]]]:
    previous = fallback.bundle
    if previous is not None:
        yield f"the previous bundle {previous}", lambda: opener.ladder([ModeSource("normal", previous)])
    if fallback.on_cpu and CPU_ENGINE in opener.engines:
        own = sources[0].bundle
        yield f"{own} on {CPU_ENGINE}", lambda: _on_cpu(opener, own)


def _on_cpu(opener: Opener, path: Path) -> ActiveModes:
    bundle = open_bundle(path, allow_unaccepted=opener.allow_unaccepted, trust=opener.trust)
    engines = {bundle.manifest.engine.name: _OnCpu(opener.engines[CPU_ENGINE])}
    return replace(opener, engines=engines).ladder([ModeSource("normal", path)])


@dataclass(frozen=True)
class _OnCpu:
    """onnxruntime where a bundle names another engine; float parts in FP32."""

    engine: Engine
    name: str = CPU_ENGINE
    float_precisions: tuple[EnginePrecision, ...] = ("f32",)

    def status(self) -> EngineStatus:
        return self.engine.status()

    def encodings(self) -> tuple[str, ...]:
        return tuple(self.engine.encodings())

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        # FP16 beside Q/DQ breaks the rewrites of onnxruntime: it cannot open such a file with them
        return self.engine.open(model, replace(options, precision="f32", optimise=False))


def _line(error: AvqError) -> str:
    return f"{error.what} ({error.seen})" if error.seen else error.what
