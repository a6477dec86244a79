"""Signed bundles: a signature covers the manifest, and through its digests every part.

The bytes of manifest.json are signed as they lie on disk, so a signature is checked before anything is parsed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from avq.errors import BundleError, MachineError, RequestError

# Ed25519 keys and signatures (RFC 8032). Only this file imports the cryptography package, on use.


def new_key_pair() -> tuple[bytes, bytes]:
    """Return a new key pair: the private key as PKCS8 PEM, the public key as PEM."""
    ed25519, serialization = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def sign_message(private_pem: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Return the raw public key (32 bytes) and the signature (64 bytes) of ``message``.

    Raises RequestError when the PEM text holds no unencrypted Ed25519 private key.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(private_pem, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key("private", str(error)) from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _no_key("private", type(key).__name__)
    return key.public_key().public_bytes_raw(), key.sign(message)


def raw_public_key(public_pem: bytes) -> bytes:
    """Return the 32 bytes of the public key in a PEM text. Raises RequestError when it holds none."""
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(public_pem)
    except ValueError as error:
        raise _no_key("public", str(error)) from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _no_key("public", type(key).__name__)
    raw: bytes = key.public_bytes_raw()
    return raw


def signature_is_valid(public_raw: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` is that of the key over ``message``."""
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_raw).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _no_key(kind: str, seen: str) -> RequestError:
    return RequestError(
        f"the file is not an Ed25519 {kind} key",
        seen=seen,
        fix="create a pair with: avq bundle keygen -o KEY",
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MachineError(
            "signatures need the cryptography package", seen=str(error), fix='pip install "avq[sign]"'
        ) from None
    return ed25519, serialization


SIGNATURE = "signature"
MAX_SIGNATURE_BYTES = 4096
#: Prefix of the signed bytes (domain separation): signatures made for other purposes never match.
_DOMAIN = b"avq bundle manifest 1\n"
_ALGORITHM = "ed25519"


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file ``signature``: SHA-256 of the raw public key, and the signature, both hex."""

    algorithm: str
    key: str
    signature: str


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key; ``raw`` is its 32 bytes."""

    raw: bytes

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Trust:
    """Trusted keys and the oldest accepted bundle.

    Attributes:
        keys: public keys; one of them must have signed the bundle.
        not_before: bundles created earlier are refused, ISO 8601 UTC; '' allows any age. Raised with a release,
            it keeps an old, properly signed bundle from being put back.
    """

    keys: tuple[PublicKey, ...]
    not_before: str = ""

    def check(self, manifest: bytes, signature: bytes | None, where: str) -> PublicKey:
        """Return the key that signed ``manifest``. Raises BundleError if unsigned, untrusted or invalid."""
        if signature is None:
            raise BundleError(
                f"the bundle {where} is not signed",
                seen="no file 'signature', and a signature is required",
                fix=f"avq bundle sign {where} --key KEY",
            )
        parsed = _parse(signature, where)
        key = next((k for k in self.keys if k.fingerprint == parsed.key), None)
        if key is None:
            trusted = ", ".join(k.fingerprint[:16] for k in self.keys) or "none"
            raise BundleError(
                f"the bundle {where} is signed by a key that is not trusted",
                seen=f"key {parsed.key[:16]}; trusted: {trusted}",
                fix="sign it with a trusted key, or add the key to trusted_keys",
            )
        if not signature_is_valid(key.raw, _DOMAIN + manifest, bytes.fromhex(parsed.signature)):
            raise BundleError(
                f"the signature of {where} does not match its manifest",
                seen=f"key {parsed.key[:16]}",
                fix="sign the bundle again: it changed, or the signature belongs to another bundle",
            )
        return key

    def check_age(self, created: str, where: str) -> None:
        """Raise BundleError for a bundle older than ``not_before``."""
        if created < self.not_before:
            raise BundleError(
                f"the bundle {where} is older than not_before",
                seen=f"created {created}, not_before {self.not_before}",
                fix="install the current bundle, or lower not_before",
            )


def generate_key(path: Path) -> PublicKey:
    """Write a new private key to ``path`` (PEM, mode 0600) and the public one to ``path``.pub.

    Raises RequestError when either file is there already, MachineError without the cryptography package.
    """
    public_path = path.with_name(path.name + ".pub")
    for taken in (path, public_path):
        if taken.exists():
            raise RequestError(
                f"{taken} exists; a key is never overwritten", seen=str(taken), fix="name another file"
            )
    private_pem, public_pem = new_key_pair()
    _write_new(path, private_pem, mode=0o600)
    _write_new(public_path, public_pem, mode=0o644)
    return PublicKey(raw_public_key(public_pem))


def read_trust(keys: Sequence[Path], *, not_before: str = "") -> Trust:
    """Read trusted public keys from PEM files. Raises RequestError for a file without one."""
    return Trust(tuple(PublicKey(raw_public_key(_key_bytes(path))) for path in keys), not_before)


def sign_manifest(manifest: bytes, key_path: Path) -> bytes:
    """Return the content of the file ``signature`` for these bytes of manifest.json.

    Raises RequestError when ``key_path`` holds no Ed25519 private key, or others may read it.
    """
    private_pem = _key_bytes(key_path)
    mode = key_path.stat().st_mode & 0o777
    if mode & 0o077:
        raise RequestError(
            f"the private key {key_path} can be read by others",
            seen=f"mode {mode:o}",
            fix=f"chmod 600 {key_path}, and make a new key if others may have read it",
        )
    raw, signature = sign_message(private_pem, _DOMAIN + manifest)
    return _render(Signature(algorithm=_ALGORITHM, key=PublicKey(raw).fingerprint, signature=signature.hex()))


def _render(signature: Signature) -> bytes:
    return msgspec.json.encode(signature, order="sorted") + b"\n"


def _parse(raw: bytes, where: str) -> Signature:
    try:
        parsed = msgspec.json.decode(raw, type=Signature)
        bytes.fromhex(parsed.signature)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BundleError(
            f"the signature of {where} cannot be read", seen=str(error), fix="sign the bundle again"
        ) from None
    if parsed.algorithm != _ALGORITHM:
        raise BundleError(
            f"the signature of {where} has an unknown algorithm",
            seen=parsed.algorithm,
            fix=f"only {_ALGORITHM} is accepted: sign the bundle again",
        )
    if _render(parsed) != raw:
        raise BundleError(
            f"the signature of {where} was edited", seen=f"{len(raw)} bytes", fix="sign the bundle again"
        )
    return parsed


def _key_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"the key {path} cannot be read",
            seen=error.strerror or str(error),
            fix="avq bundle keygen -o KEY",
        ) from None


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor, not a path)
            file.write(content)
    except OSError as error:
        raise RequestError(
            f"the key {path} cannot be written", seen=error.strerror or str(error), fix="check the folder"
        ) from None


__all__ = [
    "MAX_SIGNATURE_BYTES",
    "SIGNATURE",
    "PublicKey",
    "Trust",
    "generate_key",
    "read_trust",
    "sign_manifest",
]
