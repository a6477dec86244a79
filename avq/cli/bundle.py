"""Commands ``avq bundle ...``: keys, signatures and integrity of bundles."""

from __future__ import annotations

from pathlib import Path

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command


@cli.group(cls=AvqGroup)
def bundle() -> None:
    """Create keys, sign bundles, check them."""


@command(bundle)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="private key to write; the public key gets the suffix .pub",
)
def keygen(call: Call, output: Path) -> int:
    """Create an Ed25519 key pair. Keep the private key; install the public key on the vehicles."""
    from avq.commands.bundle import keygen as make_pair

    return call.emit(make_pair(output))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--key", type=PATH, required=True, help="private key to sign with")
def sign(call: Call, path: Path, key: Path) -> int:
    """Check every part of a bundle, then sign its manifest."""
    from avq.commands.bundle import sign as sign_bundle

    return call.emit(sign_bundle(path, key))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option(
    "--trusted", type=PATH, multiple=True, metavar="KEY.pub", help="public key to accept a signature of"
)
def verify(call: Call, path: Path, trusted: tuple[Path, ...]) -> int:
    """Check every part of a bundle, and its signature if --trusted is given."""
    from avq.commands.bundle import verify as verify_bundle

    return call.emit(verify_bundle(path, trusted))
