"""Published messages handed to a function of the same process, on the sink's own thread."""

from __future__ import annotations

from collections.abc import Callable

from avq.types import Frame, Published


class CallbackSink:
    """Calls ``function(message, frame)`` per published frame.

    Args:
        function: runs on the sink's thread; what it raises ends this sink, not the run.
        wants_pixels: whether it gets the frame (a copy it may keep) or None.
    """

    def __init__(
        self, function: Callable[[Published, Frame | None], None], *, wants_pixels: bool = True
    ) -> None:
        self.wants_pixels = wants_pixels
        self._function = function

    def write(self, message: Published, frame: Frame | None) -> None:
        self._function(message, frame)

    def close(self) -> None:
        """Nothing to free."""
