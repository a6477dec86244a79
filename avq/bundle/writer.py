"""Write bundles atomically: staged in a folder next to the destination, synced, then renamed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from avq.atomic_file import atomic_replace, end_staging, new_staging_folder, sync
from avq.bundle.manifest import MANIFEST, Manifest, Part, render, require_part_name, sealed
from avq.bundle.signature import SIGNATURE
from avq.errors import BundleError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_CHUNK_BYTES = 1 << 20


def staging_folder(final_dir: Path) -> Path:
    """Create and return the empty staging folder of a bundle for ``final_dir``.

    It is next to its destination, so that the last step is a rename on one file system. Those of killed builds are
    deleted.
    Raises BundleError when ``final_dir`` holds something that is not a bundle, before any work is done.
    """
    require_replaceable(final_dir)
    try:
        final_dir.parent.mkdir(parents=True, exist_ok=True)
        return new_staging_folder(final_dir)
    except OSError as error:
        raise _cannot_write(final_dir, error) from None


def write_staged(staging_dir: Path, manifest: Manifest, parts: Mapping[str, bytes | Path]) -> Manifest:
    """Write ``parts`` and the manifest into the staging folder; return the sealed manifest.

    May be called again with the returned manifest (changed with ``msgspec.structs.replace``): parts written
    before are kept, parts of the same name replaced. A Path is copied, unless it is already in its place.
    """
    listed = dict(manifest.parts)
    try:
        for name, content in parts.items():
            require_part_name(name)
            listed[name] = _put(staging_dir / name, content)
        complete = sealed(manifest, listed)
        _put(staging_dir / MANIFEST, render(complete))
        sync(staging_dir)
    except OSError as error:
        raise _cannot_write(staging_dir, error) from None
    return complete


def discard(staging_dir: Path) -> None:
    """Delete a staged bundle that is not wanted."""
    shutil.rmtree(staging_dir, ignore_errors=True)
    end_staging(staging_dir)


def publish(staging_dir: Path, final_dir: Path) -> None:
    """Move a staged bundle to its destination; an existing bundle is replaced in the same step."""
    require_replaceable(final_dir)
    try:
        if final_dir.exists():
            _replace_folder(staging_dir, final_dir)
        else:
            staging_dir.rename(final_dir)
        end_staging(staging_dir)
        sync(final_dir.parent)
    except OSError as error:
        raise _cannot_write(final_dir, error) from None


def write_bundle(
    staging_dir: Path, final_dir: Path, manifest: Manifest, parts: Mapping[str, bytes | Path]
) -> Manifest:
    """Run ``write_staged`` and ``publish``; returns the sealed manifest."""
    complete = write_staged(staging_dir, manifest, parts)
    publish(staging_dir, final_dir)
    return complete


def put_signature(bundle_dir: Path, content: bytes) -> None:
    """Write the file ``signature`` of an existing bundle atomically."""
    try:
        _put(bundle_dir / SIGNATURE, content)
        sync(bundle_dir)
    except OSError as error:
        raise _cannot_write(bundle_dir, error) from None


def require_replaceable(final_dir: Path) -> None:
    """Raise BundleError unless ``final_dir`` is free, an empty folder, or an existing bundle."""
    if final_dir.is_symlink():
        raise BundleError(
            f"{final_dir} is a link", seen=f"-> {final_dir.readlink()}", fix="name the folder itself"
        )
    if not final_dir.exists() or (final_dir / MANIFEST).is_file():
        return
    if not final_dir.is_dir():
        raise BundleError(f"{final_dir} exists and is not a folder", fix="choose another output or remove it")
    some = sorted(path.name for path in final_dir.iterdir())[:3]
    if some:
        raise BundleError(
            f"{final_dir} exists and is not a bundle; it is not overwritten",
            seen=f"it holds {', '.join(some)} ...",
            fix="choose another output folder",
        )


def _put(path: Path, content: bytes | Path) -> Part:
    """Write atomically and sync; return the digest of the bytes written."""
    if isinstance(content, Path) and content.absolute() == path.absolute():
        return _digest_of(path)
    sha, size = hashlib.sha256(), 0
    with atomic_replace(path) as temporary, temporary.open("wb") as target:
        for chunk in _chunks(content):
            sha.update(chunk)
            size += len(chunk)
            target.write(chunk)
    return Part(sha256=sha.hexdigest(), bytes=size)


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def _digest_of(path: Path) -> Part:
    sha, size = hashlib.sha256(), 0
    for chunk in _chunks(path):
        sha.update(chunk)
        size += len(chunk)
    return Part(sha256=sha.hexdigest(), bytes=size)


def _replace_folder(staging_dir: Path, final_dir: Path) -> None:
    """Exchange the folders in one step where the system supports it, else in two renames; delete the old one."""
    if _exchange(staging_dir, final_dir):
        shutil.rmtree(staging_dir, ignore_errors=True)
        return
    old = final_dir.parent / f".{final_dir.name}.old-{os.getpid()}"
    shutil.rmtree(old, ignore_errors=True)
    final_dir.rename(old)
    try:
        staging_dir.rename(final_dir)
    except OSError:
        old.rename(final_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where libc, kernel or file system does not offer it."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _cannot_write(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"the bundle {path} cannot be written",
        seen=error.strerror or str(error),
        fix="check the path, its permissions and the free space",
    )
