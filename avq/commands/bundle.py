"""``avq bundle``: keys, signatures, and whether a bundle is whole and vouched for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avq.bundle import SIGNATURE, generate_key, open_bundle, read_trust, sign_bundle


def keygen(path: Path) -> dict[str, Any]:
    """A new pair: ``path`` signs and stays secret, ``path``.pub goes to the vehicles."""
    public = generate_key(path)
    return {"private_key": path, "public_key": path.with_name(path.name + ".pub"), "key": public.fingerprint}


def sign(path: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle whose every part checks."""
    bundle = sign_bundle(path, key)
    return {"bundle": path, "digest": bundle.digest, "parts": len(bundle.manifest.parts), "signed": True}


def verify(path: Path, trusted: Sequence[Path]) -> dict[str, Any]:
    """Check every part, and the signature when keys are given.

    Raises BundleError at the first thing that does not check.
    """
    bundle = open_bundle(path, allow_unaccepted=True, trust=read_trust(trusted) if trusted else None)
    bundle.verify()
    unchecked = "present, not checked: name the key with --trusted"
    signed = bundle.signed_by.fingerprint if bundle.signed_by is not None else None
    return {
        "bundle": path,
        "digest": bundle.digest,
        "accepted": bundle.manifest.accepted,
        "parts": len(bundle.manifest.parts),
        "signed_by": signed or (unchecked if (path / SIGNATURE).exists() else "nobody"),
    }
