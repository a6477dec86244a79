"""Tables of outputs: ``[[sinks]]``, ``[recorder]`` and ``[[alerts]]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from avq.config.fields import Count, Document, FilePath, Names, PositiveNumber, Ratio, Seconds, Text, Uri

_MQTT = ("mqtt:", "mqtts:")


def with_query(uri: str, values: dict[str, Any]) -> str:
    """Append ``key=value`` parameters to a URI; None values are skipped."""
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(given)}"


class SinkConfig(Document):
    """Table ``[[sinks]]``: one output of messages."""

    uri: Uri = Field(
        title="URI",
        description="- for standard output, out.jsonl, out.mcap, mqtt://host/topic (alerts only), zenoh://key, "
        "or the scheme of a plugin",
    )
    password_file: FilePath | None = Field(
        default=None, title="Password file", description="MQTT: file with the password of the URI's user"
    )
    password_env: Text | None = Field(
        default=None, title="Password variable", description="MQTT: environment variable with the password"
    )
    ca_file: FilePath | None = Field(
        default=None,
        title="Certificate authority",
        description="MQTT: PEM file with the certificates that mqtts:// trusts",
    )
    client_id: Text | None = Field(
        default=None, title="Client id", description="MQTT: id at the broker; unique per daemon"
    )
    spool: FilePath | None = Field(
        default=None,
        title="Spool",
        description="MQTT: folder for alerts while the broker is unreachable; one per daemon",
    )
    spool_messages: Annotated[int, Field(strict=True, ge=2, le=1_000_000)] | None = Field(
        default=None,
        title="Spool size",
        description="MQTT: maximum number of waiting alerts, 2 or more; the oldest are deleted first",
    )

    @field_validator("password_file", "password_env", "ca_file", "client_id", "spool", "spool_messages")
    @classmethod
    def _only_for_mqtt(cls, value: Any, info: ValidationInfo) -> Any:
        uri = info.data.get("uri")
        if uri is not None and not uri.startswith(_MQTT):
            raise ValueError(f"only mqtt:// and mqtts:// sinks have this key, not {uri}")
        return value

    @field_validator("password_env")
    @classmethod
    def _not_both_passwords(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("password_file") is not None:
            raise ValueError("password_file is set too; give only one of them")
        return value

    def address(self, vehicle: str = "") -> str:
        """Return the URI with all keys as parameters, as sinks are opened."""
        keys = self.model_dump(exclude={"uri"})
        if self.uri.startswith(_MQTT) and vehicle:
            keys["vehicle"] = vehicle
        return with_query(self.uri, keys)


class RecorderConfig(Document):
    """Table ``[recorder]``: the flight recorder, an MCAP log that survives a crash."""

    path: FilePath = Field(
        title="Log", description=".mcap file; rotated files have their start time in the name"
    )
    image: Literal["jpeg", "png", "none"] = Field(
        default="jpeg",
        title="Pictures",
        description="jpeg: small; png: lossless and slow; none: boxes only",
    )
    quality: int = Field(default=90, strict=True, ge=1, le=100, title="JPEG quality", description="1 to 100")
    log_on: Literal["all", "miss"] = Field(
        default="all", title="Log on", description="record all frames, or the seconds around each late frame"
    )
    before_s: Seconds = Field(
        default=5.0, title="Before", description='seconds recorded before a late frame, with log_on = "miss"'
    )
    after_s: Seconds = Field(
        default=5.0, title="After", description='seconds recorded after a late frame, with log_on = "miss"'
    )
    rotate_mb: PositiveNumber | None = Field(
        default=None, title="File size", description="start a new file at this size, megabytes"
    )
    rotate_s: PositiveNumber | None = Field(
        default=None, title="File time", description="start a new file after this time, seconds"
    )
    keep_mb: PositiveNumber | None = Field(
        default=None,
        title="Keep",
        description="delete the oldest files above this total, megabytes; the open file stays",
    )

    @field_validator("quality")
    @classmethod
    def _quality_needs_jpeg(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("image", "jpeg") != "jpeg":
            raise ValueError(f'quality needs image = "jpeg", not {info.data["image"]!r}')
        return value

    @field_validator("before_s", "after_s")
    @classmethod
    def _needs_log_on_miss(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("log_on", "miss") != "miss":
            raise ValueError('it has no effect without log_on = "miss"')
        return value

    @field_validator("keep_mb")
    @classmethod
    def _needs_rotation(cls, value: float | None, info: ValidationInfo) -> float | None:
        size_mb = info.data.get("rotate_mb")
        if value is not None and size_mb is None and info.data.get("rotate_s") is None:
            raise ValueError("it needs rotate_mb or rotate_s: the open file is never deleted")
        if value is not None and size_mb is not None and value < 2 * size_mb:
            raise ValueError(
                f"it must be at least twice rotate_mb = {size_mb:g}: the open file is never deleted"
            )
        return value

    def address(self) -> str:
        """Return the recorder as a sink URI."""
        return with_query(f"mcap:{self.path}", self.model_dump(exclude={"path"}, exclude_unset=True))


_ON_FRAMES = ("object", "budget_miss")
_OBJECT_ONLY = ("classes", "min_score", "zone", "anchor")


def _as_names(value: Any) -> Any:
    """Accept one name as a list of one."""
    return (value,) if isinstance(value, str) else value


def _as_corners(value: Any) -> Any:
    """Turn a rectangle (left, top, right, bottom) into its corners."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(item, int | float) for item in value):
        left, top, right, bottom = value
        return [[left, top], [right, top], [right, bottom], [left, bottom]]
    return value


Corner = tuple[Ratio, Ratio]
Corners = Annotated[tuple[Corner, ...], Field(min_length=3), BeforeValidator(_as_corners)]
NameOrNames = Annotated[Names, BeforeValidator(_as_names)]


class AlertConfig(Document):
    """Table ``[[alerts]]``: raised if ``hits`` of a camera's last ``frames`` published frames meet the condition."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        title="Alert name", description="letters, digits, '_', '.' and '-'; part of the alert's id"
    )
    kind: Literal["object", "budget_miss", "camera_dead", "drift"] = Field(
        default="object",
        title="Kind",
        description="object: an object is detected; budget_miss: frames are late; camera_dead; drift",
    )
    classes: NameOrNames | None = Field(
        default=None,
        title="Classes",
        description="class names of the bundle; a detection of any of them counts",
    )
    min_score: Ratio = Field(
        default=0.5, title="Minimum score", description="lowest score of a detection that counts, 0 to 1"
    )
    zone: Corners | None = Field(
        default=None,
        title="Zone",
        description="corners [[x, y], ...] or a rectangle [left, top, right, bottom], in shares of the picture: "
        "0 is left and top, 1 is right and bottom",
    )
    anchor: Literal["bottom", "center"] = Field(
        default="bottom",
        title="Anchor",
        description="point of a box that must be in the zone: middle of its bottom edge, or its center",
    )
    cameras: NameOrNames | None = Field(
        default=None, title="Cameras", description="ids of the cameras to check; default: all"
    )
    frames: Annotated[int, Field(strict=True, ge=1, le=10_000)] = Field(
        default=5, title="Frames", description="number of last published frames of one camera to check"
    )
    hits: Count | None = Field(
        default=None,
        title="Hits",
        description="frames among them that must meet the condition; default 3, at most frames",
    )
    cooldown_s: Seconds = Field(
        default=30.0,
        title="Cooldown",
        description="seconds per camera without another alert after one was raised",
    )

    @field_validator("zone")
    @classmethod
    def _zone_has_an_area(cls, zone: tuple[Corner, ...] | None) -> tuple[Corner, ...] | None:
        if zone is not None and abs(_twice_the_area(zone)) < 1e-6:
            raise ValueError("zone has no area: its corners are on one line")
        return zone

    @field_validator("hits")
    @classmethod
    def _not_more_hits_than_frames(cls, hits: int | None, info: ValidationInfo) -> int | None:
        frames = info.data.get("frames", 1)
        if hits is not None and hits > frames:
            raise ValueError(f"hits = {hits} is more than frames = {frames}")
        return hits

    @field_validator(*_OBJECT_ONLY)
    @classmethod
    def _only_for_objects(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind", "object")
        if kind != "object":
            raise ValueError(f"an alert of kind {kind} uses no detections")
        return value

    @field_validator("frames", "hits")
    @classmethod
    def _only_on_frames(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind", "object")
        if kind not in _ON_FRAMES:
            raise ValueError(f"an alert of kind {kind} counts no frames")
        return value

    @model_validator(mode="after")
    def _objects_have_classes(self) -> AlertConfig:
        if self.kind == "object" and self.classes is None:
            raise ValueError('classes is required, for example classes = ["person"]')
        return self


def _twice_the_area(corners: tuple[Corner, ...]) -> float:
    following = (*corners[1:], corners[0])
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, following, strict=True))
