"""Files cached between runs under the digest of all their inputs: a hit is exact, a miss names what differs."""

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
    """Give $XDG_CACHE_HOME/avq/``kind``, the folder of one kind of cached file."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "avq" / kind


def store(path: Path, content: bytes) -> None:
    """Write a cache file whole or not at all; a disk that refuses it is no error."""
    with suppress(OSError, DataError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content)


@dataclass(frozen=True)
class ArtifactCache:
    """A folder of cached files, each with a JSON file of its key and the digest of its content."""

    folder: Path

    def get(self, key: Mapping[str, str]) -> tuple[bytes | None, str]:
        """Read the file of exactly this key.

        Returns:
            (content, reason); the content is None on a miss, the reason then names the fields that differ.
        """
        sidecar = self._path(key).with_suffix(".json")
        fields = _read_key(sidecar)
        content = _read(self._path(key))
        if fields is not None and content is not None and fields.get("sha256") == _sha256(content):
            return content, "all its inputs are the same"
        if content is not None:
            return None, "the cached file is damaged"
        return None, self._nearest(key)

    def put(self, key: Mapping[str, str], content: bytes) -> None:
        """Write a file and its key, each whole or not at all; a disk that refuses them is no error."""
        store(self._path(key), content)
        sidecar = json.dumps({**key, "sha256": _sha256(content)}, sort_keys=True)
        store(self._path(key).with_suffix(".json"), sidecar.encode())

    def _path(self, key: Mapping[str, str]) -> Path:
        return self.folder / f"{_sha256(json.dumps(dict(key), sort_keys=True).encode())[:32]}.kept"

    def _nearest(self, key: Mapping[str, str]) -> str:
        """Name the fields that differ from the most similar file."""
        best: list[str] | None = None
        for sidecar in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            fields = _read_key(sidecar)
            if fields is None:
                continue
            names = sorted(key.keys() | (fields.keys() - {"sha256"}))
            differing = [
                f"{name}: {str(fields.get(name, 'none'))[:20]}, here {key.get(name, 'none')[:20]}"
                for name in names
                if fields.get(name) != key.get(name)
            ]
            if best is None or len(differing) < len(best):
                best = differing
        return "; ".join(best) if best else "nothing is cached yet"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_key(path: Path) -> dict[str, str] | None:
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None
