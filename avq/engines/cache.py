"""Files kept between runs under the digest of everything they depend on: a hit is right, a miss says what differs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from avq.atomic_file import atomic_write
from avq.errors import DataError


def cache_folder(kind: str) -> Path:
    """$XDG_CACHE_HOME/avq/``kind``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "avq" / kind


def keep(path: Path, content: bytes) -> None:
    """Whole or not at all; nothing fails because nothing can be kept."""
    with suppress(OSError, DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)


@dataclass(frozen=True)
class Kept:
    """A folder of such files; beside each lies its key, field by field, and the digest of its content."""

    folder: Path

    def get(self, key: Mapping[str, str]) -> tuple[bytes | None, str]:
        """(content, why): the content kept under exactly this key, or None and the fields that differ."""
        sidecar = self._path(key).with_suffix(".json")
        said = _read_key(sidecar)
        content = _read(self._path(key))
        if said is not None and content is not None and said.get("sha256") == _sha256(content):
            return content, "everything it depends on is the same"
        if content is not None:
            return None, "the kept file is damaged"
        return None, self._nearest(key)

    def put(self, key: Mapping[str, str], content: bytes) -> None:
        """Whole or not at all; nothing fails because nothing can be kept."""
        keep(self._path(key), content)
        sidecar = json.dumps({**key, "sha256": _sha256(content)}, sort_keys=True)
        keep(self._path(key).with_suffix(".json"), sidecar.encode())

    def _path(self, key: Mapping[str, str]) -> Path:
        return self.folder / f"{_sha256(json.dumps(dict(key), sort_keys=True).encode())[:32]}.kept"

    def _nearest(self, key: Mapping[str, str]) -> str:
        """What differs from the file that has most in common."""
        best: list[str] | None = None
        for sidecar in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            said = _read_key(sidecar)
            if said is None:
                continue
            names = sorted(key.keys() | (said.keys() - {"sha256"}))
            differing = [
                f"{name}: {str(said.get(name, 'none'))[:20]}, here {key.get(name, 'none')[:20]}"
                for name in names
                if said.get(name) != key.get(name)
            ]
            if best is None or len(differing) < len(best):
                best = differing
        return "; ".join(best) if best else "nothing was kept yet"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_key(path: Path) -> dict[str, str] | None:
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
