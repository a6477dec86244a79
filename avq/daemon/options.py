"""Options of a run, and of its cameras."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.capture_protocol import Policy
from avq.daemon.engine_recovery import Step
from avq.daemon.observer import NullObserver, RunObserver
from avq.daemon.pipeline import FrameResult
from avq.daemon.publisher import DRAIN_S
from avq.daemon.side_task import SideTaskWorker
from avq.daemon.stop_deadline import StopDeadline
from avq.daemon.supervisor import RestartPolicy
from avq.daemon.systemd import SystemdNotifier
from avq.types.frame import Event


@dataclass(frozen=True)
class CameraOptions:
    """How one camera is captured.

    Attributes:
        policy: "auto" (live: newest, files: every frame), "newest" or "every".
        open_timeout_ms, read_timeout_ms: of cameras and streams.
        restarts: how a live camera is restarted.
        deadline_ns: allowed age at publication; None for the deadline of the run.
    """

    policy: Policy = "auto"
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    deadline_ns: int | None = None


@dataclass(frozen=True)
class RunOptions:
    """Everything of a run that has a default.

    Attributes:
        frames: stop after this number of published frames, over all cameras.
        policy, open_timeout_ms, read_timeout_ms, restarts: as in CameraOptions, for cameras not in ``cameras``.
        cameras: camera id -> options of that camera.
        providers: "module:function" names that give the capture processes their source types.
        on_event: called with every event, on a thread of its own.
        on_result: called after every frame, on the loop's thread: for tests and progress lines.
        observer: a page or metrics; called on the loop's thread.
        signals: SIGINT and SIGTERM end the run, SIGHUP reloads the configuration; main thread only.
        notifier: of the service manager.
        deadline: ends the process when the loop does not return after a stop signal; None never does.
        swapper: puts other bundles in service; closed by the caller.
        fallbacks: (name, function that opens modes) tried after the serving modes when the engine fails repeatedly.
        side_tasks: work outside the frame path; closed with the run.
        addresses: of the sinks, in their order, for reports.
        drain_s: seconds that all sinks together have to write queued messages when the run ends.
    """

    frames: int | None = None
    policy: Policy = "auto"
    providers: tuple[str, ...] = ("avq.daemon.registry:source_types",)
    open_timeout_ms: int = 5000
    read_timeout_ms: int = 2000
    on_event: Callable[[Event], None] | None = None
    on_result: Callable[[FrameResult], None] | None = None
    signals: bool = True
    cameras: Mapping[str, CameraOptions] = field(default_factory=dict)
    observer: RunObserver = field(default_factory=NullObserver)
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    notifier: SystemdNotifier = field(default_factory=SystemdNotifier)
    deadline: StopDeadline | None = None
    swapper: BundleSwapper | None = None
    fallbacks: tuple[Step, ...] = ()
    side_tasks: tuple[SideTaskWorker, ...] = ()
    addresses: tuple[str, ...] = ()
    drain_s: float = DRAIN_S

    def of(self, camera: str) -> CameraOptions:
        """Options of one camera: its own, or those of the run."""
        shared = CameraOptions(self.policy, self.open_timeout_ms, self.read_timeout_ms, self.restarts)
        return self.cameras.get(camera, shared)

    @property
    def deadlines_ns(self) -> dict[str, int]:
        """Deadlines of the cameras that have their own."""
        return {name: own.deadline_ns for name, own in self.cameras.items() if own.deadline_ns is not None}
