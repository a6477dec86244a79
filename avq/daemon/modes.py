"""Modes: open bundles in the order of the ladder, warm, with the cost of one frame on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from avq.bundle import OpenBundle, Trust, open_bundle
from avq.clock import Clock, SystemClock
from avq.daemon.governor import Rung
from avq.daemon.step import Parts, step
from avq.engines.cpu import instruction_set
from avq.errors import BundleError
from avq.hookspecs import Decoder, Engine
from avq.measure.detector import Detector, detector_of
from avq.types import U8, Frame

if TYPE_CHECKING:
    from avq.config.run import ModeConfig

WARM_UPS = 2
_ROUNDS = 9
_LEAST_ROUNDS = 3
_ENOUGH_NS = 1_500_000_000
_PICTURE_PX = (1280, 720)


@dataclass(frozen=True)
class Mode:
    """One rung of the ladder: a bundle and a stride.

    Attributes:
        parts: an open bundle; modes may share its session, because they never run at once.
        stride: process every n-th frame of each camera.
        cost_ns: service time of one frame on this machine without other load; 0 until measured.
    """

    parts: Parts
    stride: int = 1
    cost_ns: float = 0.0

    @property
    def name(self) -> str:
        return self.parts.mode


@dataclass(frozen=True)
class ActiveModes:
    """All modes of a run, best first.

    Attributes:
        modes: open.
        close: frees them.
        bundle: of the best mode.
        reopen: opens the same modes once more; None where that is not possible.
    """

    modes: tuple[Mode, ...]
    close: Callable[[], None] = lambda: None
    bundle: OpenBundle | None = None
    reopen: Callable[[], ActiveModes] | None = None

    @property
    def bundle_digest(self) -> str:
        """Digest of the bundle of the best mode."""
        return self.modes[0].parts.bundle_digest


def as_modes(work: Parts | Sequence[Mode]) -> tuple[Mode, ...]:
    """Return modes; one bundle is a ladder of one mode."""
    return (Mode(work),) if isinstance(work, Parts) else tuple(work)


def rungs(modes: Sequence[Mode], cameras: int = 1) -> tuple[Rung, ...]:
    """Return the rungs with costs of a round: a frame may wait for one frame of each other camera."""
    return tuple(Rung(mode.name, max(mode.cost_ns, 1.0) * cameras, mode.stride) for mode in modes)


def warm_modes(modes: Sequence[Mode], clock: Clock | None = None) -> tuple[Mode, ...]:
    """Warm up the modes, and measure their costs when there is more than one.

    Raises:
        Exception: an engine or decoder raised it on a synthetic picture; no camera is open yet.
    """
    distinct = list({id(mode.parts.session): mode.parts for mode in modes}.values())
    for parts in distinct:
        warm_up(parts)
    if len(modes) == 1:
        return tuple(modes)
    costs = _costs(distinct, clock or SystemClock())
    return tuple(
        mode if mode.cost_ns else replace(mode, cost_ns=costs[id(mode.parts.session)]) for mode in modes
    )


def warm_up(parts: Parts) -> None:
    """Run the first, slow inferences (allocation, code paths) before a camera is opened."""
    width_px, height_px = parts.input_size_px
    for _ in range(WARM_UPS):
        parts.session.infer(np.zeros((1, 3, height_px, width_px), np.uint8))


def _costs(distinct: Sequence[Parts], clock: Clock) -> dict[int, float]:
    """Median nanoseconds per frame of each session, interleaved so that other load affects all alike."""
    picture = Frame("warm-up", 0, 0, _picture())
    spent: list[list[int]] = [[] for _ in distinct]
    machine = SystemClock()
    began_ns = machine.now_ns()
    for turn in range(_ROUNDS + 1):
        for index, parts in enumerate(distinct):
            before_ns = clock.now_ns()
            step(picture, parts, clock)
            spent[index].append(clock.now_ns() - before_ns)
        if turn >= _LEAST_ROUNDS and machine.now_ns() - began_ns > _ENOUGH_NS:
            break
    return {id(parts.session): median(times[1:]) for parts, times in zip(distinct, spent, strict=True)}


def _picture() -> U8:
    """(720, 1280, 3): soft gradients, as cheap to resize as any picture."""
    width_px, height_px = _PICTURE_PX
    rows = np.linspace(0, 255, height_px, dtype=np.uint8)[:, None, None]
    columns = np.linspace(0, 127, width_px, dtype=np.uint8)[None, :, None]
    picture: U8 = np.repeat(rows // 2 + columns, 3, axis=2)
    return picture


@dataclass(frozen=True, slots=True)
class ModeSource:
    """One mode as the configuration names it."""

    name: str
    bundle: Path
    stride: int = 1


def mode_sources(bundle: Path, modes: Sequence[ModeConfig] = ()) -> list[ModeSource]:
    """List the modes of a configuration, best first; without modes, ``bundle`` alone as mode "normal".

    Args:
        bundle: served by every mode that names no bundle.
        modes: the ``[[modes]]`` tables.
    """
    rows = [ModeSource(mode.name, mode.bundle or bundle, mode.stride) for mode in modes]
    return rows or [ModeSource("normal", bundle)]


@dataclass(frozen=True)
class Opened:
    """One open bundle."""

    bundle: OpenBundle
    parts: Parts
    close: Callable[[], None]


@dataclass(frozen=True)
class Opener:
    """Opens bundles, at the start of a run and for swaps.

    Attributes:
        engines: available on this machine, by name.
        families: head families of plugins.
        trust: signature policy; None requires no signature.
        allow_unaccepted: also serve bundles that a gate refused.
        on_open: called with every open bundle and its detector; raises AvqError to refuse it.
        on_begin: called with the path of every bundle before it is opened, which may take long.
    """

    engines: Mapping[str, Engine]
    families: Sequence[Decoder] = ()
    trust: Trust | None = None
    allow_unaccepted: bool = False
    on_open: Callable[[OpenBundle, Detector], None] = field(default=lambda bundle, detector: None)
    on_begin: Callable[[Path], None] = field(default=lambda path: None)

    def open(self, path: Path, mode: str = "normal") -> Opened:
        """Open one bundle; its parts, digests and signature are verified first.

        Raises:
            BundleError, RefusedError, MachineError: it cannot serve here; nothing is left open.
        """
        self.on_begin(path)
        bundle = open_bundle(
            path, allow_unaccepted=self.allow_unaccepted, isa=instruction_set(), trust=self.trust
        )
        bundle.verify()  # every part, also those that are not read here
        detector = detector_of(bundle, self.engines, families=self.families)
        try:
            self.on_open(bundle, detector)
        except BaseException:
            detector.close()
            raise
        return Opened(bundle, replace(parts_of(bundle, detector), mode=mode), detector.close)

    def ladder(self, sources: Sequence[ModeSource]) -> ActiveModes:
        """Open every distinct bundle once; return the modes in the given order."""
        opened: dict[Path, Opened] = {}

        def close() -> None:
            for bundle in opened.values():
                bundle.close()

        try:
            for source in sources:
                if source.bundle not in opened:
                    opened[source.bundle] = self.open(source.bundle)
            _require_same_classes([(source.name, opened[source.bundle].parts) for source in sources])
        except BaseException:
            close()
            raise
        modes = (
            Mode(replace(opened[source.bundle].parts, mode=source.name), source.stride) for source in sources
        )
        best = opened[sources[0].bundle].bundle
        return ActiveModes(tuple(modes), close, best, partial(self.ladder, sources))


def parts_of(bundle: OpenBundle, detector: Detector) -> Parts:
    """Convert an open bundle into the parts that the daemon uses."""
    spec = detector.preprocessor.spec
    return Parts(
        preprocessor=detector.preprocessor,
        session=detector.session,
        decoder=detector.decoder,
        labels=detector.class_names,
        bundle_digest=bundle.digest,
        input_size_px=(spec.width_px, spec.height_px),
    )


def require_classes(parts: Parts, labels: Sequence[str], name: str) -> None:
    """Raise BundleError unless the classes of ``parts`` equal those of the serving bundle."""
    if tuple(parts.labels) == tuple(labels):
        return
    here, there = (", ".join(names[:6]) or "none" for names in (parts.labels, tuple(labels)))
    raise BundleError(
        f"{name} has other classes than the serving bundle",
        seen=f"{len(parts.labels)}: {here}; serving {len(labels)}: {there}",
        fix="build both from models with the same classes in the same order (--classes)",
    )


def _require_same_classes(modes: Sequence[tuple[str, Parts]]) -> None:
    for name, parts in modes[1:]:
        require_classes(parts, modes[0][1].labels, f"the mode '{name}'")
