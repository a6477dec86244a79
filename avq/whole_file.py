"""Files that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avq.errors import DataError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place when the block ends, and is gone when that fails.

    Raises DataError when the system refuses.
    """
    aside = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written",
            seen=error.strerror or str(error),
            fix="check the path, its permissions and the free space",
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink()


def write_whole(path: Path, content: bytes | str) -> None:
    """``content`` (text as UTF-8) at ``path``. Raises DataError when it cannot be written."""
    with written_whole(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
