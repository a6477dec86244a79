"""How a run goes beyond its sources and sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avq.daemon.bundle_swap import Exchange
from avq.daemon.capture_protocol import Policy
from avq.daemon.observer import Unwatched, Watcher
from avq.daemon.pipeline import Turn
from avq.daemon.publisher import DRAIN_S
from avq.daemon.side_task import Aside
from avq.daemon.supervisor import RestartPolicy
from avq.daemon.systemd import Notifier


@dataclass(frozen=True)
class CameraOptions:
    """How one camera is captured.

    Attributes:
        policy: "auto" (live: newest, files: every frame), "newest" or "every".
        open_timeout_ms, read_timeout_ms: of cameras and streams.
        restarts: how a live camera is brought back.
        deadline_ns: its own; None for the run's.
    """

    policy: Policy = "auto"
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    deadline_ns: int | None = None


@dataclass(frozen=True)
class RunOptions:
    """Everything that has a default.

    Attributes:
        frames: stop after so many published frames, over all cameras.
        policy, open_timeout_ms, read_timeout_ms, restarts: as in CameraOptions, for cameras not named in ``cameras``.
        cameras: camera id -> its own options.
        providers: "module:function" names that give the capture processes their source types.
        on_event: called with every event, on a thread of its own.
        on_turn: called after every frame, on the loop's thread: for tests and progress lines.
        watcher: a page, metrics; asked on the loop's thread.
        signals: SIGINT and SIGTERM end the run cleanly, SIGHUP reads the configuration again; main thread only.
        notifier: the service manager.
        exchange: puts other bundles in service; stays the caller's to close.
        asides: work beside the frame path; closed with the run.
        addresses: where the sinks write, in their order, for reports.
        drain_s: what the sinks have, together, to write what waits when the run ends.
    """

    frames: int | None = None
    policy: Policy = "auto"
    providers: tuple[str, ...] = ("avq.daemon.registry:source_types",)
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    on_event: Callable[[Mapping[str, Any]], None] | None = None
    on_turn: Callable[[Turn], None] | None = None
    signals: bool = True
    cameras: Mapping[str, CameraOptions] = field(default_factory=dict)
    watcher: Watcher = field(default_factory=Unwatched)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    notifier: Notifier = field(default_factory=Notifier)
    exchange: Exchange | None = None
    asides: tuple[Aside, ...] = ()
    addresses: tuple[str, ...] = ()
    drain_s: float = DRAIN_S

    def of(self, camera: str) -> CameraOptions:
        """What holds for one camera."""
        shared = CameraOptions(self.policy, self.open_timeout_ms, self.read_timeout_ms, self.restarts)
        return self.cameras.get(camera, shared)

    @property
    def deadlines_ns(self) -> dict[str, int]:
        """Of the cameras that have one of their own."""
        return {
            camera: own.deadline_ns for camera, own in self.cameras.items() if own.deadline_ns is not None
        }
