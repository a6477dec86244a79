"""Open a bundle: every part is verified by its digest before use, and the bytes hashed are those returned."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from msgspec import UNSET

from avq.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, Part, check_machine, parse, render
from avq.bundle.npz import read_npz
from avq.bundle.signature import MAX_SIGNATURE_BYTES, SIGNATURE, PublicKey, Trust, sign_manifest
from avq.bundle.writer import put_signature
from avq.errors import BundleError, RefusedError, nearest
from avq.types import AnyArray


@dataclass(frozen=True)
class OpenBundle:
    """A bundle with a verified manifest.

    Attributes:
        manifest: what it says of itself.
        path: the folder.
        digest: SHA-256 of the canonical manifest; names the bundle in messages and logs.
        signed_by: the trusted key whose signature was verified; None when no signature was required.
    """

    manifest: Manifest
    path: Path
    digest: str
    signed_by: PublicKey | None = None

    def has(self, part: str) -> bool:
        """Return whether the manifest lists ``part``."""
        return part in self.manifest.parts

    def read(self, part: str) -> bytes:
        """Read and verify one part; it is read once, hashed and returned.

        Raises BundleError: not listed, missing, a link, of another length, or its digest does not check.
        """
        listed = self.manifest.parts.get(part)
        if listed is None:
            raise BundleError(
                f"the bundle {self.path} has no part '{part}'", fix=nearest(part, self.manifest.parts)
            )
        content = _read_plain_file(self.path / part, listed.bytes)
        if len(content) != listed.bytes or hashlib.sha256(content).hexdigest() != listed.sha256:
            raise BundleError(
                f"the part '{part}' of {self.path} is damaged or was replaced",
                seen=_difference(content, listed),
                fix="copy or build the bundle again",
            )
        return content

    def arrays(self, part: str) -> dict[str, AnyArray]:
        """Return the arrays of an .npz part (golden.npz, plan.npz); never unpickles."""
        try:
            return read_npz(self.read(part))
        except ValueError as error:
            raise BundleError(
                f"the part '{part}' of {self.path} holds no plain arrays", seen=str(error)
            ) from None

    def verify(self) -> None:
        """Verify every part. Raises BundleError on the first damaged one."""
        for part in self.manifest.parts:
            self.read(part)


def open_bundle(
    path: Path, *, allow_unaccepted: bool = False, isa: str | None = None, trust: Trust | None = None
) -> OpenBundle:
    """Open the bundle folder at ``path`` and check its manifest.

    Args:
        allow_unaccepted: also open bundles a gate refused or no vehicle has confirmed yet; for inspecting,
            comparing and compiling them, and for --allow-unaccepted.
        isa: this machine's instruction set; when given, a bundle accepted with others is refused.
        trust: when given, the signature is checked first: nothing of an unsigned bundle is parsed.

    Raises:
        BundleError: not a bundle, damaged, unsigned, of an unknown format, or for another machine.
        RefusedError: not accepted, and ``allow_unaccepted`` is False.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(
            f"there is no bundle at {folder}",
            seen="a file" if folder.exists() else "no folder",
            fix="a bundle is a folder: avq build MODEL.onnx --data DIR -o BUNDLE",
        )
    raw = _read_plain_file(folder / MANIFEST, MAX_MANIFEST_BYTES)
    signed_by = None if trust is None else trust.check(raw, _signature_of(folder), str(folder))
    manifest = parse(raw, str(folder))
    if trust is not None:
        trust.check_age(manifest.created, str(folder))
    if not allow_unaccepted:
        _require_accepted(manifest, folder)
    if isa is not None:
        check_machine(manifest, isa)
    return OpenBundle(manifest=manifest, path=folder, digest=manifest.digest, signed_by=signed_by)


def sign_bundle(path: Path, key_path: Path) -> OpenBundle:
    """Check every part, then sign the manifest that was read; a signature that was there is replaced.

    Raises BundleError for a damaged bundle, RequestError for a key that cannot be used.
    """
    bundle = open_bundle(path, allow_unaccepted=True)
    bundle.verify()
    put_signature(path, sign_manifest(render(bundle.manifest), key_path))
    return bundle


def is_bundle(path: Path) -> bool:
    """Return whether ``path`` is a folder with a manifest, without verifying it."""
    return (Path(path) / MANIFEST).is_file()


def _signature_of(folder: Path) -> bytes | None:
    """Return the bytes of the file ``signature``; None without one."""
    if not os.path.lexists(folder / SIGNATURE):
        return None
    return _read_plain_file(folder / SIGNATURE, MAX_SIGNATURE_BYTES)


def _require_accepted(manifest: Manifest, folder: Path) -> None:
    if manifest.accepted is True:
        return
    if manifest.accepted == "pending-target":
        raise RefusedError(
            f"the bundle {folder} has not been measured on its target yet",
            seen=f"target {manifest.target}, accepted: pending-target",
            fix=f"on the vehicle: avq compile {folder} --target {manifest.target}",
        )
    raise RefusedError(
        f"the bundle {folder} was not accepted by its gate{answers(manifest)}",
        seen="; ".join(manifest.reasons) or "no reasons given",
        fix="build a better one, or serve this one with --allow-unaccepted",
    )


def answers(manifest: Manifest) -> str:
    """Return the gate's answers as " (accuracy: no, time: yes)"; '' in bundles of older releases."""
    if manifest.accuracy_verdict is UNSET:
        return ""
    return f" (accuracy: {manifest.accuracy_verdict}, time: {manifest.time_verdict or 'not judged'})"


def _read_plain_file(path: Path, limit_bytes: int) -> bytes:
    """Read at most ``limit_bytes`` + 1 bytes of a regular file; links, pipes and devices are refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise BundleError(f"{path} is not a plain file", fix="copy or build the bundle again")
        # open() refuses a folder before it owns the descriptor, so it never owns this one
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max(0, min(limit_bytes, facts.st_size)) + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    finally:
        os.close(descriptor)


def _unreadable(path: Path, error: OSError) -> BundleError:
    if error.errno == errno.ELOOP:
        return BundleError(
            f"{path} is a link; a bundle holds plain files only", fix="copy the bundle, following links"
        )
    if error.errno == errno.ENOENT and path.name == MANIFEST:
        return BundleError(
            f"{path.parent} is not a bundle", seen="it has no manifest.json", fix="check the path"
        )
    return BundleError(
        f"the part '{path.name}' of the bundle {path.parent} cannot be read",
        seen=error.strerror or str(error),
        fix="copy or build the bundle again",
    )


def _difference(content: bytes, listed: Part) -> str:
    if len(content) > listed.bytes:
        return f"longer than the {listed.bytes} bytes in the manifest"
    if len(content) < listed.bytes:
        return f"{len(content)} of {listed.bytes} bytes"
    return f"sha256 {hashlib.sha256(content).hexdigest()[:12]}, manifest {listed.sha256[:12]}"
