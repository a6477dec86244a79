"""``[[alerts]]``: what the car tells somebody outside."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from avq.config.values import Count, Document, Names, Ratio, Seconds

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
