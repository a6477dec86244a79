"""Start of a run: golden outputs are checked first, and only configured fallbacks replace a failed bundle.

The opener checks signature, digests, machine and engine, in that order, before anything is deserialised. A fallback
bundle passes the same checks.
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
    """Fallbacks for a bundle that does not start, in this order.

    Attributes:
        bundle: the previous bundle.
        on_cpu: the model of the bundle on onnxruntime: same outputs, slower.
    """

    bundle: Path | None = None
    on_cpu: bool = False


def start(
    opener: Opener, sources: Sequence[ModeSource], fallback: FallbackPolicy, warn: Callable[[str], None]
) -> ActiveModes:
    """Open the modes of ``sources``, or the first fallback that starts.

    Args:
        opener: of bundles.
        sources: the modes, best first.
        fallback: what may replace them.
        warn: called with one line for each failure.

    Raises:
        AvqError: the first failure, when no fallback is configured or none starts.
    """
    opener = replace(opener, on_open=_checked(opener))
    try:
        return opener.ladder(sources)
    except AvqError as error:
        first = error
    for name, attempt in _attempts(opener, sources, fallback):
        try:
            served = attempt()
        except AvqError as error:
            warn(f"{name} does not start either: {_line(error)}")
            continue
        warn(f"{_line(first)}; falling back to {name}")
        return served
    raise first


def fallbacks(
    opener: Opener, sources: Sequence[ModeSource], fallback: FallbackPolicy
) -> tuple[tuple[str, Callable[[], ActiveModes]], ...]:
    """Return (name, function that opens modes) of the configured fallbacks, with the checks of ``start``."""
    return tuple(_attempts(replace(opener, on_open=_checked(opener)), sources, fallback))


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
        best = sources[0].bundle
        yield f"{best} on {CPU_ENGINE}", lambda: _on_cpu(opener, best)


def _on_cpu(opener: Opener, path: Path) -> ActiveModes:
    bundle = open_bundle(path, allow_unaccepted=opener.allow_unaccepted, trust=opener.trust)
    engines = {bundle.manifest.engine.name: _OnCpu(opener.engines[CPU_ENGINE])}
    return replace(opener, engines=engines).ladder([ModeSource("normal", path)])


@dataclass(frozen=True)
class _OnCpu:
    """onnxruntime in the place of another engine, with float parts in FP32."""

    engine: Engine
    name: str = CPU_ENGINE
    float_precisions: tuple[EnginePrecision, ...] = ("f32",)

    def status(self) -> EngineStatus:
        return self.engine.status()

    def encodings(self) -> tuple[str, ...]:
        return tuple(self.engine.encodings())

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        # onnxruntime cannot open FP16 parts around Q/DQ with its graph optimisations
        return self.engine.open(model, replace(options, precision="f32", optimise=False))


def _line(error: AvqError) -> str:
    return f"{error.what} ({error.seen})" if error.seen else error.what
