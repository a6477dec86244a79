"""Cameras, streams, files and scenes in: one file per kind, all opened inside the capture process."""

from __future__ import annotations

from avq.hookspecs import SourceType
from avq.sources.cameras import StreamSource, V4l2Source
from avq.sources.files import PictureSource, VideoSource
from avq.sources.scene import SceneSource
from avq.sources.uri import open_source


def builtin_sources() -> tuple[SourceType, ...]:
    """The kinds avq brings, except logs (``avq.recording.LogSource``)."""
    return (SceneSource(), VideoSource(), PictureSource(), StreamSource(), V4l2Source())


__all__ = ["builtin_sources", "open_source"]
