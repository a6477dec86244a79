"""Ed25519 keys and signatures (RFC 8032): the only file that imports the cryptography package, and late."""

from __future__ import annotations

from typing import Any

from avq.errors import MachineError, RequestError


def new_key_pair() -> tuple[bytes, bytes]:
    """A new key pair: the private key as PKCS8 PEM, the public one as PEM."""
    ed25519, serialization = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def sign_message(private_pem: bytes, message: bytes) -> tuple[bytes, bytes]:
    """The raw public key (32 bytes) and its signature (64 bytes) of ``message``.

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
    """The 32 bytes of the public key in a PEM text. Raises RequestError when it holds none."""
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
    """Whether ``signature`` is the key's over ``message``."""
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_raw).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _no_key(kind: str, seen: str) -> RequestError:
    return RequestError(
        f"this is no Ed25519 {kind} key", seen=seen, fix="make a pair with: avq bundle keygen -o KEY"
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
