"""A compiled bundle that was touched: refused with clean words, and its engine is never deserialised."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from avq.bundle import MANIFEST, SIGNATURE, open_bundle, read_trust, render, sealed
from avq.bundle.engines import ENGINES
from avq.bundle.manifest import parse
from avq.commands import compile_engine as proof
from avq.commands.bundle import keygen, sign
from avq.daemon.modes import Opener
from avq.errors import BundleError
from tests.e2e.test_compile import Card, compiled

pytest.importorskip("cryptography", reason="signatures need the cryptography package")
ENGINE, OTHER = "engine.sm87", "engine.sm110"


@pytest.fixture(scope="module")
def signed(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle with engines of two cards, the key that signed it)."""
    folder = tmp_path_factory.mktemp("compiled")
    bundle = Path(shutil.copytree(built[0], folder / "b.avq"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "ROUNDS", 5)  # of onnxruntime in an engine's place
        compiled(bundle, Card("sm87"))
        compiled(bundle, Card("sm110"))
    keygen(folder / "key")
    sign(bundle, folder / "key")
    return bundle, folder / "key.pub"


def opened_by(card: Card, bundle: Path, key: Path, not_before: str = "") -> None:
    trust = read_trust([key], not_before=not_before)
    Opener({"tensorrt": cast(Any, card)}, trust=trust).open(bundle).close()


def flip(name: str, place: float) -> Callable[[Path], None]:
    def harm(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        (bundle / name).write_bytes(content)

    return harm


def swap(bundle: Path) -> None:
    a, b = (bundle / ENGINE).read_bytes(), (bundle / OTHER).read_bytes()
    (bundle / ENGINE).write_bytes(b + b"\0")
    (bundle / OTHER).write_bytes(a)


def link(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    (bundle / ENGINE).rename(outside)
    (bundle / ENGINE).symlink_to(outside)


def resealed(bundle: Path) -> None:
    """A manifest whose own digests check, with an engine of the attacker's."""
    (bundle / ENGINE).write_bytes(b"code")
    manifest = parse((bundle / MANIFEST).read_bytes(), "here")
    part = msgspec.structs.replace(manifest.parts[ENGINE], bytes=4, sha256="00" * 32)
    parts = {**manifest.parts, ENGINE: part}
    (bundle / MANIFEST).write_bytes(render(sealed(manifest, parts)))


def _cut(name: str, bundle: Path) -> None:
    os.truncate(bundle / name, 7)


HARMS: dict[str, Callable[[Path], object]] = {
    **{
        f"flip {name} {place}": flip(name, place)
        for name in (ENGINE, ENGINES, OTHER)
        for place in (0, 0.5, 1)
    },
    **{f"flip {name}": flip(name, 0.5) for name in (MANIFEST, SIGNATURE)},
    **{f"cut {name}": partial(_cut, name) for name in (ENGINE, ENGINES)},
    "remove the engine": lambda b: (b / ENGINE).unlink(),
    "remove the keys": lambda b: (b / ENGINES).unlink(),
    "swap engines": swap,
    "link": link,
    "forge a manifest": resealed,
    "remove the signature": lambda b: (b / SIGNATURE).unlink(),
}


@pytest.mark.slow
def test_the_untouched_one_opens_its_engine(signed: tuple[Path, Path]) -> None:
    card: Any = Card("sm110")
    opened_by(card, *signed)
    assert card.opened == ["engine"]


@pytest.mark.parametrize("name", HARMS)
def test_a_touched_one_is_refused_before_its_engine_is_read(
    signed: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    bundle = Path(shutil.copytree(signed[0], tmp_path / "b.avq"))
    HARMS[name](bundle)
    card: Any = Card("sm87")
    with pytest.raises(BundleError) as refused:
        opened_by(card, bundle, signed[1])
    assert card.opened == [] and refused.value.what and refused.value.fix


def test_an_older_one_is_refused(signed: tuple[Path, Path]) -> None:
    card: Any = Card("sm87")
    with pytest.raises(BundleError, match="older"):
        opened_by(card, *signed, not_before="2999-01-01")
    assert card.opened == [] and open_bundle(signed[0]).has(ENGINE)
