"""``[[sinks]]`` and ``[recorder]``: where messages go, and what is kept on disk."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from avq.config.fields import Count, Document, FilePath, Names, PositiveNumber, Ratio, Seconds, Text, Uri

_MQTT = ("mqtt:", "mqtts:")


def with_query(uri: str, values: dict[str, Any]) -> str:
    """``uri`` with ``key=value`` parameters added; None is left out."""
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(given)}"


class SinkConfig(Document):
    """Where messages go."""

    uri: Uri = Field(
        title="URI",
        description="- for standard output, out.jsonl, out.mcap, mqtt://host/topic (alerts only), zenoh://key, "
        "or a plugin's scheme",
    )
    password_file: FilePath | None = Field(
        default=None, title="Password file", description="MQTT: a file with the password of the URI's user"
    )
    password_env: Text | None = Field(
        default=None, title="Password variable", description="MQTT: an environment variable with the password"
    )
    ca_file: FilePath | None = Field(
        default=None, title="Certificate authority", description="MQTT: whom mqtts:// trusts, a PEM file"
    )
    client_id: Text | None = Field(
        default=None, title="Client id", description="MQTT: how the broker knows this daemon; one per daemon"
    )
    spool: FilePath | None = Field(
        default=None,
        title="Spool",
        description="MQTT: folder where alerts wait while the broker is away; one per daemon",
    )
    spool_messages: Annotated[int, Field(strict=True, ge=2, le=1_000_000)] | None = Field(
        default=None,
        title="Spool size",
        description="MQTT: alerts that may wait, 2 or more; then the oldest go",
    )

    @field_validator("password_file", "password_env", "ca_file", "client_id", "spool", "spool_messages")
    @classmethod
    def _only_for_mqtt(cls, value: Any, info: ValidationInfo) -> Any:
        uri = info.data.get("uri")
        if uri is not None and not uri.startswith(_MQTT):
            raise ValueError(f"only mqtt:// and mqtts:// sinks have this, not {uri}")
        return value

    @field_validator("password_env")
    @classmethod
    def _one_password(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("password_file") is not None:
            raise ValueError("the password is in password_file already")
        return value

    def address(self) -> str:
        """The URI with all of it, as sinks are opened."""
        return with_query(self.uri, self.model_dump(exclude={"uri"}))


class RecorderConfig(Document):
    """The flight recorder: an MCAP log that survives a crash."""

    path: FilePath = Field(
        title="Log", description="an .mcap file; rotated ones carry the time of their start in the name"
    )
    image: Literal["jpeg", "png", "none"] = Field(
        default="jpeg",
        title="Pictures",
        description="jpeg is small, png is lossless and slow, none keeps boxes only",
    )
    quality: int = Field(default=90, strict=True, ge=1, le=100, title="JPEG quality", description="1 to 100")
    log_on: Literal["all", "miss"] = Field(
        default="all", title="Log on", description="all frames, or the seconds around each budget miss"
    )
    before_s: Seconds = Field(
        default=5.0, title="Before", description='seconds kept before a miss, with log_on = "miss"'
    )
    after_s: Seconds = Field(
        default=5.0, title="After", description='seconds kept after a miss, with log_on = "miss"'
    )
    rotate_mb: PositiveNumber | None = Field(
        default=None, title="File size", description="megabytes after which another file is begun"
    )
    rotate_s: PositiveNumber | None = Field(
        default=None, title="File time", description="seconds after which another file is begun"
    )
    keep_mb: PositiveNumber | None = Field(
        default=None,
        title="Keep",
        description="megabytes of files kept; then the oldest goes, never the running one",
    )

    @field_validator("quality")
    @classmethod
    def _quality_is_of_jpeg(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("image", "jpeg") != "jpeg":
            raise ValueError(f"only JPEG has a quality, image is {info.data['image']}")
        return value

    @field_validator("before_s", "after_s")
    @classmethod
    def _around_a_miss(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("log_on", "miss") != "miss":
            raise ValueError('it does nothing without log_on = "miss": everything is logged')
        return value

    @field_validator("keep_mb")
    @classmethod
    def _keeps_more_than_one_file(cls, value: float | None, info: ValidationInfo) -> float | None:
        size_mb = info.data.get("rotate_mb")
        if value is not None and size_mb is None and info.data.get("rotate_s") is None:
            raise ValueError("there is one file only, which is never deleted: add rotate_mb or rotate_s")
        if value is not None and size_mb is not None and value < 2 * size_mb:
            raise ValueError(
                f"it must hold two files of rotate_mb = {size_mb:g}: the running one is never deleted"
            )
        return value

    def address(self) -> str:
        """The sink URI of this recorder."""
        return with_query(f"mcap:{self.path}", self.model_dump(exclude={"path"}, exclude_unset=True))


# ``[[alerts]]``: what the car tells somebody outside.

_ON_FRAMES = ("object", "budget_miss")
_OBJECT_ONLY = ("classes", "min_score", "zone", "anchor")


def _as_names(value: Any) -> Any:
    """One name may stand for a list of one."""
    return (value,) if isinstance(value, str) else value


def _as_corners(value: Any) -> Any:
    """Four numbers are a rectangle: left, top, right, bottom."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(one, int | float) for one in value):
        left, top, right, bottom = value
        return [[left, top], [right, top], [right, bottom], [left, bottom]]
    return value


Corner = tuple[Ratio, Ratio]
Corners = Annotated[tuple[Corner, ...], Field(min_length=3), BeforeValidator(_as_corners)]
NameOrNames = Annotated[Names, BeforeValidator(_as_names)]


class AlertConfig(Document):
    """Raised when at least ``hits`` of a camera's last ``frames`` published frames showed what is watched for."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        title="Alert name", description="letters, digits, '_', '.' and '-'; part of the alert's id"
    )
    kind: Literal["object", "budget_miss", "camera_dead", "drift"] = Field(
        default="object",
        title="Kind",
        description="object: something is seen; budget_miss: frames are late; camera_dead; drift",
    )
    classes: NameOrNames | None = Field(
        default=None, title="Classes", description="class names of the bundle, any of which counts"
    )
    min_score: Ratio = Field(
        default=0.5, title="Minimum score", description="of a detection that counts, 0 to 1"
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
        description="the point of a box that must be in the zone: the middle of its bottom edge, or its center",
    )
    cameras: NameOrNames | None = Field(
        default=None, title="Cameras", description="ids of the cameras it is watched on; all when not given"
    )
    frames: Annotated[int, Field(strict=True, ge=1, le=10_000)] = Field(
        default=5, title="Frames", description="published frames of one camera that are looked back on"
    )
    hits: Count | None = Field(
        default=None, title="Hits", description="how many of them must show it; 3, or all of fewer"
    )
    cooldown_s: Seconds = Field(
        default=30.0, title="Cooldown", description="seconds of silence per camera after it was raised"
    )

    @field_validator("zone")
    @classmethod
    def _zone_has_an_area(cls, zone: tuple[Corner, ...] | None) -> tuple[Corner, ...] | None:
        if zone is not None and abs(_twice_the_area(zone)) < 1e-6:
            raise ValueError("the zone has no area: its corners lie on one line")
        return zone

    @field_validator("hits")
    @classmethod
    def _not_more_hits_than_frames(cls, hits: int | None, info: ValidationInfo) -> int | None:
        frames = info.data.get("frames", 1)
        if hits is not None and hits > frames:
            raise ValueError(f"{hits} hits of {frames} frames can never be")
        return hits

    @field_validator(*_OBJECT_ONLY)
    @classmethod
    def _only_for_objects(cls, value: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind", "object")
        if kind != "object":
            raise ValueError(f"an alert of kind {kind} looks at no detections")
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
            raise ValueError('classes is needed: which objects raise it, as in classes = ["person"]')
        return self


def _twice_the_area(corners: tuple[Corner, ...]) -> float:
    following = (*corners[1:], corners[0])
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(corners, following, strict=True))
