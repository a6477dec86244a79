"""Bundles changed by someone who can write manifests, and golden answers of another network."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np

from avq.bundle import GOLDEN, open_bundle, staging_folder, write_bundle


def resealed(path: Path, parts: dict[str, bytes] | None = None, **changes: object) -> None:
    """The bundle with other contents, by someone who can write manifests."""
    old = open_bundle(path, allow_unaccepted=True)
    content: dict[str, bytes | Path] = {name: old.read(name) for name in old.manifest.parts}
    manifest = msgspec.structs.replace(old.manifest, parts={}, **changes)
    write_bundle(staging_folder(path), path, manifest, {**content, **(parts or {})})


def wrong_golden(path: Path) -> bytes:
    """Golden answers of some other network: every output in another order."""
    arrays = open_bundle(path, allow_unaccepted=True).arrays(GOLDEN)
    moved = {n: np.roll(a, 7, axis=-1)[..., ::-1] * 0.5 if ":" in n else a for n, a in arrays.items()}
    packed = io.BytesIO()
    np.savez(packed, **moved)  # type: ignore[arg-type]
    return packed.getvalue()
