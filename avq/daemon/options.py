"""How a run goes beyond its sources and sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.capture_protocol import Policy
from avq.daemon.observer import NullObserver, RunObserver
from avq.daemon.pipeline import FrameResult
from avq.daemon.publisher import DRAIN_S
from avq.daemon.side_task import SideTaskWorker
from avq.daemon.supervisor import RestartPolicy
from avq.daemon.systemd import SystemdNotifier


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
        on_result: called after every frame, on the loop's thread: for tests and progress lines.
        observer: a page, metrics; asked on the loop's thread.
        signals: SIGINT and SIGTERM end the run cleanly, SIGHUP reads the configuration again; main thread only.
        notifier: the service manager.
        swapper: puts other bundles in service; stays the caller's to close.
        side_tasks: work beside the frame path; closed with the run.
        addresses: where the sinks write, in their order, for reports.
        drain_s: what the sinks have, together, to write what waits when the run ends.
    """

    frames: int | None = None
    policy: Policy = "auto"
    providers: tuple[str, ...] = ("avq.daemon.registry:source_types",)
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    on_event: Callable[[Mapping[str, Any]], None] | None = None
    on_result: Callable[[FrameResult], None] | None = None
    signals: bool = True
    cameras: Mapping[str, CameraOptions] = field(default_factory=dict)
    observer: RunObserver = field(default_factory=NullObserver)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    notifier: SystemdNotifier = field(default_factory=SystemdNotifier)
    swapper: BundleSwapper | None = None
    side_tasks: tuple[SideTaskWorker, ...] = ()
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
