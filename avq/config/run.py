"""The run configuration of ``avq run``."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import Field, model_validator

from avq.config.fields import Count, Document, FilePath, PositiveNumber, Ratio, Switch, Text, Uri
from avq.config.sinks import AlertConfig, RecorderConfig, SinkConfig
from avq.types import LatencyBudget

Port = Annotated[int, Field(strict=True, ge=0, le=65535)]
Token = Annotated[str, Field(min_length=16, pattern=r"^[A-Za-z0-9._~-]+$")]


class WebConfig(Document):
    """Table ``[web]``: the page of a run, health and metrics."""

    enabled: Switch = Field(default=True, title="Web", description="false: open no port, no page, no metrics")
    host: Text = Field(
        default="127.0.0.1",
        title="Web address",
        description="address to listen on; an address that other machines can reach needs a token",
    )
    port: Port = Field(default=8787, title="Web port", description="0 to 65535; 0 takes a free port")
    token: Token | None = Field(
        default=None,
        title="Web token",
        description="secret that requests must carry: 16 or more letters, digits, '.', '_', '~', '-'",
    )

    @model_validator(mode="after")
    def _reachable_host_needs_token(self) -> WebConfig:
        if self.enabled and self.token is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host} can be reached by other machines, so it needs a token: "
                'set token = "..." with 16 characters or more'
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach ``host``; False for any name but localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


LogLevel = Literal["debug", "info", "warning", "error"]


class LogFilters(Document):
    """The table ``[log_filters]``: levels of single modules, instead of ``log_level``."""

    daemon: LogLevel | None = Field(
        default=None, title="Daemon log level", description="cameras, bundles, memory (logger avq.daemon)"
    )
    engines: LogLevel | None = Field(
        default=None, title="Engine log level", description="inference runtimes (logger avq.engines)"
    )
    serve: LogLevel | None = Field(
        default=None, title="Run log level", description="start, reload, alerts (logger avq.serve)"
    )
    sinks: LogLevel | None = Field(
        default=None, title="Sink log level", description="sinks and their connections (logger avq.sinks)"
    )
    web: LogLevel | None = Field(
        default=None, title="Web log level", description="page and web server (loggers avq.web, uvicorn)"
    )


class Camera(Document):
    """Table ``[[cameras]]``: one source of frames."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = Field(
        title="Camera id", description="letters, digits, '_' and '-'; part of every message"
    )
    source: Uri = Field(
        title="Source", description="scene://, rtsp://, v4l2:///dev/video0, a file, a folder, or log.mcap"
    )
    policy: Literal["auto", "every", "newest"] = Field(
        default="auto",
        title="Frame policy",
        description="auto: newest frame of live sources, every frame of files",
    )
    deadline_ms: PositiveNumber | None = Field(
        default=None,
        title="Own deadline",
        description="limit from capture to publish, milliseconds; default: deadline_ms of [budget]",
    )
    open_timeout_ms: Count = Field(
        default=5000, title="Open timeout", description="milliseconds to open the source"
    )
    read_timeout_ms: Count = Field(
        default=2000,
        title="Read timeout",
        description="milliseconds without a frame before the capture process is replaced",
    )
    reconnect: Switch = Field(
        default=True, title="Reconnect", description="false: stop the camera at its first failure"
    )
    max_restarts: Count = Field(
        default=8, title="Restarts", description="maximum restarts of the capture process within window_s"
    )
    window_s: PositiveNumber = Field(
        default=60.0, title="Restart window", description="seconds over which restarts are counted"
    )


class Budget(Document):
    """Table ``[budget]``: deadline, and how many frames may miss it."""

    deadline_ms: PositiveNumber = Field(
        default=100.0, title="Deadline", description="limit from capture to publish, milliseconds"
    )
    window_frames: Count = Field(
        default=30, title="Window", description="frames over which late frames are counted"
    )
    max_miss_ratio: Ratio = Field(
        default=0.1,
        title="Tolerated misses",
        description="allowed share of late frames in the window, 0 to 1",
    )

    def latency_budget(self) -> LatencyBudget:
        """Return the budget in nanoseconds, as the daemon takes it."""
        return LatencyBudget(round(self.deadline_ms * 1e6), self.window_frames, self.max_miss_ratio)


class ModeConfig(Document):
    """Table ``[[modes]]``: one rung of the ladder, used when the modes before it are too slow."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        title="Mode name", description="letters, digits, '_', '.' and '-'; part of every message"
    )
    bundle: FilePath | None = Field(
        default=None, title="Bundle", description="bundle of this mode; default: the bundle of the run"
    )
    stride: Count = Field(default=1, title="Stride", description="process every n-th frame of each camera")


class ShadowConfig(Document):
    """Table ``[shadow]``: a bundle that processes frames in spare time and publishes nothing."""

    bundle: FilePath = Field(title="Shadow bundle", description="bundle to compare with the serving bundle")
    every_n: Count = Field(
        default=10, title="Shadow interval", description="compare every n-th published frame"
    )


class DriftConfig(Document):
    """Table ``[drift]``: compare frames with the calibration pictures."""

    every_n: Count = Field(
        default=60,
        title="Drift interval",
        description="check every n-th published frame; choose n so that checks are seconds apart",
    )


class Fallback(Document):
    """Table ``[fallback]``: what serves if the bundle is damaged, of another machine, or fails its golden frames."""

    bundle: FilePath | None = Field(
        default=None, title="Previous bundle", description="bundle that served before"
    )
    onnxruntime: Switch = Field(
        default=False,
        title="On onnxruntime",
        description="run the bundle's model on onnxruntime, slower than its engine",
    )


class Security(Document):
    """Table ``[security]``: which bundles may serve."""

    require_signature: Switch = Field(
        default=False,
        title="Require a signature",
        description="refuse bundles without a signature of a trusted key",
    )
    trusted_keys: tuple[FilePath, ...] = Field(
        default=(), title="Trusted keys", description="public keys, .pub files of avq bundle keygen"
    )
    not_before: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2}(T.*)?)?$")] = Field(
        default="", title="Not before", description="refuse bundles created before this time, ISO 8601 UTC"
    )

    @model_validator(mode="after")
    def _keys_need_require_signature(self) -> Security:
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature needs trusted_keys; create a key pair with avq bundle keygen")
        if not self.require_signature and (self.trusted_keys or self.not_before):
            raise ValueError("trusted_keys and not_before have no effect without require_signature = true")
        return self


class RunConfig(Document):
    """Run configuration: cameras, bundle, budget and outputs."""

    bundle: FilePath = Field(title="Bundle", description="bundle folder to serve")
    cameras: tuple[Camera, ...] = Field(min_length=1, title="Cameras", description="sources of frames")
    budget: Budget = Field(
        default=Budget(), title="Latency budget", description="deadline, and allowed share of late frames"
    )
    modes: tuple[ModeConfig, ...] = Field(
        default=(),
        title="Modes",
        description="the ladder, best mode first; default: the bundle at every frame",
    )
    shadow: ShadowConfig | None = Field(
        default=None, title="Shadow", description="bundle to compare with the serving one"
    )
    drift: DriftConfig | None = Field(
        default=None, title="Drift", description="detect scenes unlike the calibration pictures"
    )
    sinks: tuple[SinkConfig, ...] = Field(default=(), title="Sinks", description="outputs of messages")
    recorder: RecorderConfig | None = Field(
        default=None, title="Recorder", description="flight recorder, an MCAP log that survives a crash"
    )
    alerts: tuple[AlertConfig, ...] = Field(
        default=(), title="Alerts", description="conditions that raise an alert"
    )
    vehicle: str = Field(
        default="",
        title="Vehicle",
        description="name of the vehicle, part of every alert and its id",
    )
    frames: Count | None = Field(
        default=None, title="Frame limit", description="stop after this many published frames"
    )
    allow_unaccepted: Switch = Field(
        default=False, title="Allow unaccepted", description="serve a bundle that the gate refused"
    )
    fallback: Fallback = Field(
        default=Fallback(), title="Fallback", description="what serves if the bundle does not start"
    )
    security: Security = Field(default=Security(), title="Security", description="which bundles may serve")
    web: WebConfig = Field(default=WebConfig(), title="Web", description="page, health and metrics")
    log_level: LogLevel = Field(
        default="info",
        title="Log level",
        description="lowest level written to standard error; debug: every event as a line of JSON",
    )
    log_filters: LogFilters = Field(
        default=LogFilters(),
        title="Log filters",
        description="levels of single modules, instead of log_level",
    )

    def deadlines_ns(self) -> dict[str, int]:
        """Return camera id -> deadline, for cameras that set ``deadline_ms``."""
        return {c.id: round(c.deadline_ms * 1e6) for c in self.cameras if c.deadline_ms is not None}
