"""``avq bundle``: keys, signatures and integrity of bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from avq.bundle import SIGNATURE, generate_key, open_bundle, read_trust, sign_bundle


class KeygenJson(TypedDict):
    """Object of ``avq bundle keygen --json``."""

    private_key: Path
    public_key: Path
    key: str


class SignJson(TypedDict):
    """Object of ``avq bundle sign --json``."""

    bundle: Path
    digest: str
    parts: int
    signed: bool


class VerifyJson(TypedDict):
    """Object of ``avq bundle verify --json``."""

    bundle: Path
    digest: str
    accepted: bool | str
    parts: int
    signed_by: str


def keygen(path: Path) -> KeygenJson:
    """Create a key pair: the private key ``path`` and the public key ``path``.pub."""
    public = generate_key(path)
    return {"private_key": path, "public_key": path.with_name(path.name + ".pub"), "key": public.fingerprint}


def sign(path: Path, key: Path) -> SignJson:
    """Check every part of a bundle, then sign its manifest with the private key in ``key``."""
    bundle = sign_bundle(path, key)
    return {"bundle": path, "digest": bundle.digest, "parts": len(bundle.manifest.parts), "signed": True}


def verify(path: Path, trusted: Sequence[Path]) -> VerifyJson:
    """Check every part of a bundle, and its signature if public keys are given.

    Raises:
        BundleError: a part, the manifest or the signature does not match.
    """
    bundle = open_bundle(path, allow_unaccepted=True, trust=read_trust(trusted) if trusted else None)
    bundle.verify()
    unchecked = "present, not checked: give the public key with --trusted"
    signed = bundle.signed_by.fingerprint if bundle.signed_by is not None else None
    return {
        "bundle": path,
        "digest": bundle.digest,
        "accepted": bundle.manifest.accepted,
        "parts": len(bundle.manifest.parts),
        "signed_by": signed or (unchecked if (path / SIGNATURE).exists() else "not signed"),
    }
