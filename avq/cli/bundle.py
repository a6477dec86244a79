"""Keys and signatures of bundles."""

from __future__ import annotations

from pathlib import Path

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command


@cli.group(cls=AvqGroup)
def bundle() -> None:
    """Keys and signatures of bundles."""


@command(bundle)
@click.option("-o", "--output", type=PATH, required=True, help="the private key to write; .pub beside it")
def keygen(call: Call, output: Path) -> int:
    """Make an Ed25519 key pair: the private key signs, the public one goes to the vehicles."""
    from avq.commands.bundle import keygen as make_pair

    return call.answer(make_pair(output))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--key", type=PATH, required=True, help="the private key")
def sign(call: Call, path: Path, key: Path) -> int:
    """Check every part of a bundle and sign its manifest."""
    from avq.commands.bundle import sign as sign_bundle

    return call.answer(sign_bundle(path, key))


@command(bundle)
@click.argument("path", metavar="BUNDLE", type=PATH)
@click.option("--trusted", type=PATH, multiple=True, metavar="KEY.pub", help="a public key that may sign")
def verify(call: Call, path: Path, trusted: tuple[Path, ...]) -> int:
    """Check that a bundle is whole, and signed by a trusted key when one is named."""
    from avq.commands.bundle import verify as verify_bundle

    return call.answer(verify_bundle(path, trusted))
