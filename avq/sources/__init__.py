"""Cameras, streams, files and scenes in: one file per kind, all opened inside the capture process."""

from __future__ import annotations

from avq.hookspecs import SourceType
from avq.sources.pictures import PictureSource
from avq.sources.scene import SceneSource
from avq.sources.stream import StreamSource
from avq.sources.uri import open_source
from avq.sources.v4l2 import V4l2Source
from avq.sources.video import VideoSource


def builtin_sources() -> tuple[SourceType, ...]:
    """The kinds avq brings, except logs (``avq.recording.LogSource``)."""
    return (SceneSource(), VideoSource(), PictureSource(), StreamSource(), V4l2Source())


__all__ = ["builtin_sources", "open_source"]
