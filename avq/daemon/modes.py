"""Modes: opened bundles in the order of the ladder, warm, with what one frame costs on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from avq.bundle import OpenBundle
from avq.clock import Clock, SystemClock
from avq.daemon.ladder import Rung
from avq.daemon.step import Parts, step
from avq.types import U8, Frame

WARM_UPS = 2
_ROUNDS = 9
_LEAST_ROUNDS = 3
_ENOUGH_NS = 1_500_000_000
_PICTURE_PX = (1280, 720)


@dataclass(frozen=True)
class Mode:
    """One way to do the work.

    Attributes:
        parts: an opened bundle; modes may share its session, they are never used at once.
        stride: every so many-th frame of each camera is processed.
        cost_ns: service time of one frame on this machine when nothing else runs; 0 until measured.
    """

    parts: Parts
    stride: int = 1
    cost_ns: float = 0.0

    @property
    def name(self) -> str:
        return self.parts.mode


@dataclass(frozen=True)
class Served:
    """All modes of a run, best first, how to free them, and the bundle of the best one."""

    modes: tuple[Mode, ...]
    close: Callable[[], None] = lambda: None
    bundle: OpenBundle | None = None

    @property
    def bundle_digest(self) -> str:
        """Of the best mode."""
        return self.modes[0].parts.bundle_digest


def as_modes(work: Parts | Sequence[Mode]) -> tuple[Mode, ...]:
    """One bundle is a ladder of one mode."""
    return (Mode(work),) if isinstance(work, Parts) else tuple(work)


def rungs(modes: Sequence[Mode], cameras: int = 1) -> tuple[Rung, ...]:
    """The ladder of a round: cameras take turns, so a frame may wait for one of each other camera."""
    return tuple(Rung(mode.name, max(mode.cost_ns, 1.0) * cameras, mode.stride) for mode in modes)


def warmed(modes: Sequence[Mode], clock: Clock | None = None) -> tuple[Mode, ...]:
    """The modes after their first, slow inferences, with their costs where there is a choice between them.

    Whatever an engine or decoder raises on a synthetic picture is raised here, before any camera is opened.
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
    """First inferences are slow (allocation, code paths): have them before a camera is opened."""
    width_px, height_px = parts.input_size_px
    for _ in range(WARM_UPS):
        parts.session.infer(np.zeros((1, 3, height_px, width_px), np.uint8))


def _costs(distinct: Sequence[Parts], clock: Clock) -> dict[int, float]:
    """Median nanoseconds per frame of each session; they take turns, so a busy moment hits all alike."""
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
