"""Which kind of source a URI asks for.

A source type claims schemes ("rtsp"), suffixes of plain paths (".mp4") and folders ("/").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from avq.errors import DataError, RequestError, nearest
from avq.hookspecs import FrameSource, SourceType
from avq.redaction import redact_uri
from avq.uris import number, parameters, whole

FOLDER = "/"


def open_source(
    uri: str,
    types: Sequence[SourceType],
    *,
    open_timeout_ms: int = 5000,
    read_timeout_ms: int = 2000,
) -> FrameSource:
    """Open ``uri`` with the type that claims its scheme, its file suffix or folders.

    Raises:
        RequestError: no type claims it, or a parameter is not valid.
        DataError: the file, folder or camera is missing, empty or broken.
    """
    return source_type(uri, types).open(uri, open_timeout_ms=open_timeout_ms, read_timeout_ms=read_timeout_ms)


def source_type(uri: str, types: Sequence[SourceType]) -> SourceType:
    """Give the type that claims the scheme, file suffix or folder of ``uri``; raises as ``open_source``."""
    claims = {scheme: kind for kind in types for scheme in kind.schemes}
    return claims[_claim(uri, claims)]


def _claim(uri: str, claims: Iterable[str]) -> str:
    known = set(claims)
    if "://" in uri and not uri.startswith("file://"):
        scheme = uri.split("://", 1)[0].lower()
        if scheme not in known:
            names = [name for name in known if name[0].isalpha()]
            raise RequestError(
                f"no source opens '{scheme}://'", seen=redact_uri(uri), fix=nearest(scheme, names)
            )
        return scheme
    return _claim_path(local_path(uri), known)


def _claim_path(path: Path, known: set[str]) -> str:
    if not path.exists():
        raise DataError(f"there is no file or folder {path}", seen=str(path), fix=_neighbour(path))
    if not (path.is_dir() or path.is_file()):
        raise DataError(
            f"{path} is a FIFO, socket or device",
            seen=str(path),
            fix="name a file or a folder; cameras of this machine are v4l2:///dev/videoN",
        )
    key = FOLDER if path.is_dir() else path.suffix.lower()
    if key not in known:
        suffixes = ", ".join(sorted(name for name in known if name.startswith(".")))
        raise RequestError(f"no source opens {path}", seen=key or "no suffix", fix=f"valid: {suffixes}")
    return key


def local_path(uri: str) -> Path:
    """The path of a plain or file:// URI, without its ``?key=value`` part."""
    text = uri.removeprefix("file://")
    whole = Path(text)
    return whole if "?" not in text or whole.exists() else Path(text.split("?", 1)[0])


def _neighbour(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    return nearest(path.name, [entry.name for entry in sorted(folder.iterdir())[:50]])


def size(table: Mapping[str, str], default: tuple[int, int]) -> tuple[int, int]:
    """``size=WIDTHxHEIGHT`` in pixels. Raises RequestError."""
    text = table.get("size")
    if text is None:
        return default
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and min(int(width), int(height)) >= 16):
        raise RequestError("parameter 'size' is not valid", seen=text, fix="WIDTHxHEIGHT, as in size=640x360")
    if max(int(width), int(height)) > 8192:
        raise RequestError("parameter 'size' is too large", seen=text, fix="at most 8192 pixels a side")
    return int(width), int(height)


__all__ = [
    "FOLDER",
    "redact_uri",
    "local_path",
    "number",
    "open_source",
    "parameters",
    "size",
    "whole",
]
