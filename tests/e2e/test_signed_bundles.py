"""A bundle that was touched after it was signed is refused before anything of it is deserialised."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from avq.bundle import MANIFEST, SIGNATURE, open_bundle, read_trust, render, sealed
from avq.bundle.manifest import parse
from avq.commands import bundle as trust
from avq.config import Camera, RunConfig, Security, WebConfig
from avq.errors import AvqError, BundleError, RequestError
from avq.plugins import PluginHost
from avq.progress import Silent
from avq.serve import serve
from tests.e2e.conftest import run_avq

pytest.importorskip("cryptography", reason="signatures need the cryptography package")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = tmp_path_factory.mktemp("keys") / "factory"
    trust.keygen(key)
    return key


@pytest.fixture
def signed(built: tuple[Path, dict[str, Any]], keys: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "signed.avq"
    shutil.copytree(built[0], copy)
    trust.sign(copy, keys)
    return copy


class CountingHost(PluginHost):
    """Counts what reaches a runtime: a tampered bundle must reach none."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0

    def running_engines(self) -> Any:
        engines = super().running_engines()
        for engine in engines.values():
            original = engine.open

            def counted(*given: Any, _open: Any = original, **named: Any) -> Any:
                self.opened += 1
                return _open(*given, **named)

            engine.open = counted  # type: ignore[method-assign]
        return engines


def served(bundle: Path, key: Path, *, not_before: str = "") -> tuple[int, int]:
    """(frames published, engines opened); raises what ``avq run`` would print."""
    host = CountingHost()
    config = RunConfig(
        bundle=bundle,
        cameras=(Camera(id="front", source="scene://drive?seed=3&size=320x192", policy="every"),),
        frames=2,
        web=WebConfig(enabled=False),
        security=Security(require_signature=True, trusted_keys=(Path(f"{key}.pub"),), not_before=not_before),
    )
    try:
        summary = serve(config, host, Silent())
    except AvqError:
        assert host.opened == 0, "a runtime saw a bundle that was refused"
        raise
    return summary.as_json()["published"], host.opened


def harms(folder: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Everything an attacker with write access to the folder may try, by name."""
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        other = next(o for o in names if o not in (name, MANIFEST, SIGNATURE))
        yield from _harms_of(name, other, (folder / name).stat().st_size)


def _harms_of(name: str, other: str, size: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    for place in (0, size // 2, size - 1):
        yield f"flip {name} at {place}", partial(_flip_in, name, place)
    yield f"truncate {name}", lambda at: os.truncate(at / name, (at / name).stat().st_size // 2)
    yield f"empty {name}", lambda at: os.truncate(at / name, 0)
    yield f"lengthen {name}", lambda at: _append(at / name)
    yield f"remove {name}", lambda at: (at / name).unlink()
    yield f"link {name}", lambda at: _link(at / name)
    yield f"swap {name} with {other}", lambda at: _swap(at / name, at / other)


def _flip_in(name: str, place: int, folder: Path) -> None:
    _flip(folder / name, place)


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def _link(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def _swap(a: Path, b: Path) -> None:
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)


def test_the_untouched_bundle_runs(signed: Path, keys: Path) -> None:
    assert served(signed, keys) == (2, 1)


@pytest.mark.slow
def test_every_touched_part_is_refused_and_no_engine_sees_it(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    survived = []
    tried = list(harms(signed))
    for number, (name, harm) in enumerate(tried):
        copy = tmp_path / f"case{number}" / "b.avq"
        shutil.copytree(signed, copy)
        harm(copy)
        try:
            served(copy, keys)
        except BundleError:
            continue
        survived.append(name)
    assert not survived
    assert len(tried) >= 60


def test_downgrades_are_refused(signed: Path, keys: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[Path], object], words: str, **more: str) -> None:
        copy = tmp_path / words.replace(" ", "-") / "b.avq"
        shutil.copytree(signed, copy)
        change(copy)
        with pytest.raises(BundleError, match=words):
            served(copy, keys, **more)

    refused(lambda at: (at / SIGNATURE).unlink(), "is not signed")
    refused(lambda at: _resealed(at, accepted=True, reasons=("forged",)), "does not match its manifest")
    refused(lambda at: _resealed(at, format=0), "does not match")
    refused(lambda at: _said(at, algorithm="none"), "has an unknown algorithm")
    refused(lambda at: _said(at, signature="00" * 64), "not match its")
    refused(lambda at: _said(at, signature="zz"), "cannot be read")
    refused(lambda at: (at / SIGNATURE).write_text((at / SIGNATURE).read_text() + " "), "was edited")
    refused(lambda at: _said(at, key="ab" * 32), "not trusted")
    refused(lambda at: None, "older than not_before", not_before="2999-01-01")


def _resealed(folder: Path, **changes: object) -> None:
    """What an attacker without the key can do: a manifest whose own digest checks."""
    manifest = parse((folder / MANIFEST).read_bytes(), "here")
    changed = msgspec.structs.replace(manifest, **changes)
    (folder / MANIFEST).write_bytes(render(sealed(changed, changed.parts)))


def _said(folder: Path, **changes: str) -> None:
    content = json.loads((folder / SIGNATURE).read_bytes())
    (folder / SIGNATURE).write_text(
        json.dumps({**content, **changes}, sort_keys=True, separators=(",", ":")) + "\n"
    )


def test_another_bundles_signature_and_a_strangers_key_are_refused(
    signed: Path, keys: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    trust.keygen(stranger)
    copy = tmp_path / "b.avq"
    shutil.copytree(signed, copy)
    _resealed(copy, created="2020-01-01T00:00:00+00:00")
    shutil.copy(signed / SIGNATURE, copy / SIGNATURE)
    with pytest.raises(BundleError, match="does not match"):
        served(copy, keys)
    trust.sign(copy, stranger)
    with pytest.raises(BundleError, match="not trusted"):
        served(copy, keys)


def test_what_was_hashed_is_what_is_used(signed: Path, keys: Path) -> None:
    opened = open_bundle(signed, trust=read_trust([Path(f"{keys}.pub")]))
    original = opened.read("model.onnx")
    (signed / "model.onnx").write_bytes(b"replaced after opening")
    with pytest.raises(BundleError):
        opened.read("model.onnx")
    assert original.startswith(b"\x08"), "the bytes that were hashed, not a second read"


def test_keys_are_private_and_never_overwritten(keys: Path, signed: Path, tmp_path: Path) -> None:
    assert keys.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RequestError, match="never overwritten"):
        trust.keygen(keys)
    loose = tmp_path / "loose"
    shutil.copy(keys, loose)
    loose.chmod(0o644)
    with pytest.raises(RequestError, match="read by others"):
        trust.sign(signed, loose)
    public = tmp_path / "public"
    shutil.copy(f"{keys}.pub", public)
    public.chmod(0o600)
    with pytest.raises(RequestError, match="private key"):
        trust.sign(signed, public)


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: Path) -> None:
    _flip(signed / "model.onnx", 100)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        trust.sign(signed, keys)


@pytest.mark.slow
def test_the_commands(signed: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    made = json.loads(run_avq("bundle", "keygen", "-o", key, "--json").stdout)
    assert run_avq("bundle", "sign", signed, "--key", key).returncode == 0
    checked = json.loads(run_avq("bundle", "verify", signed, "--trusted", f"{key}.pub", "--json").stdout)
    assert checked["signed_by"] == made["key"]

    config = tmp_path / "run.toml"
    config.write_text(
        'bundle = "signed.avq"\nframes = 2\n\n[security]\nrequire_signature = true\ntrusted_keys = ["key.pub"]\n'
        '\n[[cameras]]\nid = "front"\nsource = "scene://drive?seed=1&size=320x192"\n'
    )
    assert run_avq("run", config, "--json").returncode == 0
    (signed / SIGNATURE).unlink()
    refused = run_avq("run", config)
    assert refused.returncode == 2 and "is not signed" in refused.stderr
