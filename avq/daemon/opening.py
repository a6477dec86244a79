"""Bundles from disk to modes that can serve: signature, digests, machine, engine, and the same classes everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from avq.bundle import OpenBundle, Trust, open_bundle
from avq.daemon.modes import Mode, Served
from avq.daemon.step import Parts
from avq.engines.cpu import instruction_set
from avq.errors import BundleError
from avq.hookspecs import Decoder, Engine
from avq.measure.detector import Detector, detector_of


@dataclass(frozen=True, slots=True)
class ModeSource:
    """One rung as the configuration names it."""

    name: str
    bundle: Path
    stride: int = 1


@dataclass(frozen=True)
class Opened:
    """One bundle, opened and ready."""

    bundle: OpenBundle
    parts: Parts
    close: Callable[[], None]


@dataclass(frozen=True)
class Opener:
    """How this run opens bundles, at its start and for swaps.

    Attributes:
        engines: that run here, by name.
        families: head families of plugins.
        trust: signature policy; None asks for no signature.
        allow_unaccepted: also serve what a gate refused.
        on_open: told every bundle and its detector; raises what speaks against serving it.
        on_begin: told every bundle that is about to be opened, which may take long.
    """

    engines: Mapping[str, Engine]
    families: Sequence[Decoder] = ()
    trust: Trust | None = None
    allow_unaccepted: bool = False
    on_open: Callable[[OpenBundle, Detector], None] = field(default=lambda bundle, detector: None)
    on_begin: Callable[[Path], None] = field(default=lambda path: None)

    def open(self, path: Path, mode: str = "normal") -> Opened:
        """Raises BundleError, RefusedError or MachineError; then nothing is left open."""
        self.on_begin(path)
        bundle = open_bundle(
            path, allow_unaccepted=self.allow_unaccepted, isa=instruction_set(), trust=self.trust
        )
        bundle.verify()  # every part, also those that are read later or by people
        detector = detector_of(bundle, self.engines, families=self.families)
        try:
            self.on_open(bundle, detector)
        except BaseException:
            detector.close()
            raise
        return Opened(bundle, replace(parts_of(bundle, detector), mode=mode), detector.close)

    def ladder(self, sources: Sequence[ModeSource]) -> Served:
        """Every distinct bundle once, as modes in the order given."""
        opened: dict[Path, Opened] = {}

        def close() -> None:
            for one in opened.values():
                one.close()

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
        return Served(tuple(modes), close, opened[sources[0].bundle].bundle)


def parts_of(bundle: OpenBundle, detector: Detector) -> Parts:
    """An opened bundle as the daemon takes it."""
    spec = detector.preprocessor.spec
    return Parts(
        preprocessor=detector.preprocessor,
        session=detector.session,
        decoder=detector.decoder,
        labels=detector.class_names,
        bundle_digest=bundle.digest,
        input_size_px=(spec.width_px, spec.height_px),
    )


def require_classes(parts: Parts, labels: Sequence[str], what: str) -> None:
    """Raise BundleError unless ``parts`` name the classes that messages already go out with."""
    if tuple(parts.labels) == tuple(labels):
        return
    here, there = (", ".join(names[:6]) or "none" for names in (parts.labels, tuple(labels)))
    raise BundleError(
        f"{what} knows other classes than the bundle that serves",
        seen=f"{len(parts.labels)}: {here}; serving {len(labels)}: {there}",
        fix="build both from models with the same classes in the same order (--classes)",
    )


def _require_same_classes(modes: Sequence[tuple[str, Parts]]) -> None:
    for name, parts in modes[1:]:
        require_classes(parts, modes[0][1].labels, f"the mode '{name}'")
