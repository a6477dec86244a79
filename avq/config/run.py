"""The document of ``avq run``."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from avq.config.fields import Count, Document, FilePath, PositiveNumber, Ratio, Switch, Text, Uri
from avq.config.sinks import AlertConfig, RecorderConfig, SinkConfig
from avq.types import LatencyBudget

# The table ``[web]``: where the page of a run listens, and what visitors must show.

Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Token = Annotated[str, Field(min_length=16, pattern=r"^[A-Za-z0-9._~-]+$")]


class WebConfig(Document):
    """The page of a run, its health and its metrics."""

    enabled: Switch = Field(default=True, title="Web", description="false: no page, no metrics, no port")
    host: Text = Field(
        default="127.0.0.1",
        title="Web address",
        description="where to listen; one that other machines can reach needs a token",
    )
    port: Port = Field(default=8787, title="Web port", description="0 to 65535; 0 takes a free one")
    token: Token | None = Field(
        default=None,
        title="Web token",
        description="what visitors must show: 16 or more letters, digits, '.', '_', '~', '-'",
    )

    @model_validator(mode="after")
    def _others_need_a_token(self) -> WebConfig:
        if self.enabled and self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"other machines can reach {self.host}, so visitors must show a token: "
                'give token = "..." with 16 characters or more'
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost may mean anything."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


LogLevel = Literal["debug", "info", "warning", "error"]


class Camera(Document):
    """One source of frames."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = Field(
        title="Camera id", description="letters, digits, '_' and '-'; names the camera in every message"
    )
    source: Uri = Field(
        title="Source", description="scene://, a file, a folder, rtsp://, v4l2:///dev/video0 or log.mcap"
    )
    policy: Literal["auto", "every", "newest"] = Field(
        default="auto",
        title="Frame policy",
        description="auto: newest wins for live sources, every frame of files",
    )
    deadline_ms: PositiveNumber | None = Field(
        default=None, title="Own deadline", description="capture to publish, milliseconds; else the budget's"
    )
    open_timeout_ms: Count = Field(
        default=5000, title="Open timeout", description="milliseconds to open the source"
    )
    read_timeout_ms: Count = Field(
        default=2000, title="Read timeout", description="milliseconds to wait for a frame"
    )
    reconnect: Switch = Field(
        default=True, title="Reconnect", description="false: a camera's first failure is its end"
    )
    max_restarts: Count = Field(
        default=8, title="Restarts", description="of a camera's capture process within window_s, at most"
    )
    window_s: PositiveNumber = Field(
        default=60.0, title="Restart window", description="seconds over which restarts are counted"
    )


class Budget(Document):
    """How late is late."""

    deadline_ms: PositiveNumber = Field(
        default=100.0, title="Deadline", description="allowed time from capture to publish, milliseconds"
    )
    window_frames: Count = Field(
        default=30, title="Window", description="frames over which misses are judged"
    )
    max_miss_ratio: Ratio = Field(
        default=0.1, title="Tolerated misses", description="share of late frames in the window, 0 to 1"
    )

    def latency_budget(self) -> LatencyBudget:
        """The same in nanoseconds, as the daemon takes it."""
        return LatencyBudget(round(self.deadline_ms * 1e6), self.window_frames, self.max_miss_ratio)


class ModeConfig(Document):
    """One rung of the ladder: what is done when the modes before it are too slow."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        title="Mode name", description="letters, digits, '_', '.' and '-'; stands in every message"
    )
    bundle: FilePath | None = Field(
        default=None, title="Bundle", description="the bundle this mode serves; the run's own when not given"
    )
    stride: Count = Field(
        default=1, title="Stride", description="every so many-th frame of each camera is processed"
    )


class ShadowConfig(Document):
    """A candidate that looks at frames in spare time and publishes nothing."""

    bundle: FilePath = Field(
        title="Shadow bundle", description="the bundle to compare with the one that serves"
    )
    every_n: Count = Field(
        default=10, title="Shadow interval", description="every so many-th published frame is compared"
    )


class DriftConfig(Document):
    """Whether the scene is still what the bundle was calibrated on."""

    every_n: Count = Field(
        default=60,
        title="Drift interval",
        description="every so many-th published frame is looked at; they should be seconds apart",
    )


class Fallback(Document):
    """What serves when the bundle does not start: damaged, of another machine, or with other answers than it had."""

    bundle: FilePath | None = Field(
        default=None, title="Previous bundle", description="the bundle that served before"
    )
    onnxruntime: Switch = Field(
        default=False,
        title="On onnxruntime",
        description="run the bundle's own model on onnxruntime: slower than its engine, and right",
    )


class Security(Document):
    """Whose bundles are served."""

    require_signature: Switch = Field(
        default=False,
        title="Require a signature",
        description="refuse every bundle that no trusted key signed",
    )
    trusted_keys: tuple[FilePath, ...] = Field(
        default=(), title="Trusted keys", description="public keys (.pub files of avq bundle keygen)"
    )
    not_before: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2}(T.*)?)?$")] = Field(
        default="", title="Not before", description="refuse bundles created earlier, ISO 8601 UTC"
    )

    @model_validator(mode="after")
    def _keys_and_demand_go_together(self) -> Security:
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature needs trusted_keys; make a pair with avq bundle keygen")
        if not self.require_signature and (self.trusted_keys or self.not_before):
            raise ValueError("trusted_keys and not_before do nothing without require_signature = true")
        return self


class RunConfig(Document):
    """What ``avq run`` serves."""

    bundle: FilePath = Field(title="Bundle", description="the bundle folder to serve")
    cameras: tuple[Camera, ...] = Field(min_length=1, title="Cameras", description="where frames come from")
    budget: Budget = Field(default=Budget(), title="Latency budget", description="how late is late")
    modes: tuple[ModeConfig, ...] = Field(
        default=(), title="Modes", description="the ladder, best work first; without it the bundle alone"
    )
    shadow: ShadowConfig | None = Field(
        default=None, title="Shadow", description="a candidate to compare before anyone promotes it"
    )
    drift: DriftConfig | None = Field(
        default=None, title="Drift", description="watch for scenes unlike the calibration pictures"
    )
    sinks: tuple[SinkConfig, ...] = Field(default=(), title="Sinks", description="where messages go")
    recorder: RecorderConfig | None = Field(
        default=None, title="Recorder", description="the flight recorder, an MCAP log that survives a crash"
    )
    alerts: tuple[AlertConfig, ...] = Field(
        default=(), title="Alerts", description="what is worth a message from the car"
    )
    vehicle: str = Field(
        default="",
        title="Vehicle",
        description="stands in every alert and its id, so that fleets can tell cars apart",
    )
    frames: Count | None = Field(
        default=None, title="Frame limit", description="stop after so many published frames"
    )
    allow_unaccepted: Switch = Field(
        default=False, title="Allow unaccepted", description="serve a bundle that its gate refused"
    )
    fallback: Fallback = Field(
        default=Fallback(), title="Fallback", description="what serves when the bundle does not start"
    )
    security: Security = Field(default=Security(), title="Security", description="whose bundles are served")
    web: WebConfig = Field(default=WebConfig(), title="Web", description="the page, health and metrics")
    log_level: LogLevel = Field(
        default="info",
        title="Log level",
        description="how much is said on standard error; debug: every event as a line of JSON",
    )

    def deadlines_ns(self) -> dict[str, int]:
        """Return camera id -> deadline, of the cameras that set their own."""
        return {c.id: round(c.deadline_ms * 1e6) for c in self.cameras if c.deadline_ms is not None}
