"""Engines compiled into a bundle: what each was built from, so that none is used where anything differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from avq import __version__
from avq.bundle.manifest import ENGINE_PREFIX, MODEL
from avq.bundle.reader import OpenBundle
from avq.errors import BundleError

#: The part that lists the keys of all engines, by their parts' names.
ENGINES = "engines.json"
#: What an engine must fit to run at all; the rest says whether another build would give the same.
_TO_RUN = ("model", "runtime", "version", "architecture")


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything an engine depends on.

    Attributes:
        model: SHA-256 of the file it was built from.
        runtime, version: which library, which release.
        architecture: of the card, such as "sm87".
        flags: how it was built; '' for the file's own types on the GPU.
        avq: version that built it.
    """

    model: str
    runtime: str
    version: str
    architecture: str
    flags: str = ""
    avq: str = __version__


def engine_name(architecture: str) -> str:
    """The name of the part: "engine.sm87"."""
    return f"{ENGINE_PREFIX}{architecture}"


def engines_part(keys: Mapping[str, EngineKey]) -> bytes:
    """The content of the part ``ENGINES``."""
    return msgspec.json.encode(dict(sorted(keys.items())), order="sorted")


def engine_keys(bundle: OpenBundle) -> dict[str, EngineKey]:
    """Key of every compiled engine, by part name; empty where nothing was compiled ahead."""
    if not bundle.has(ENGINES):
        return {}
    try:
        listed = msgspec.json.decode(bundle.read(ENGINES), type=dict[str, EngineKey])
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"the part '{ENGINES}' of {bundle.path} cannot be read", seen=str(error), fix="compile it again"
        ) from None
    return {name: key for name, key in listed.items() if bundle.has(name)}


def wanted_key(
    bundle: OpenBundle, runtime: str, version: str, architecture: str, flags: str = ""
) -> EngineKey:
    """The key of an engine that would be built now, here, from the bundle's model."""
    model = bundle.manifest.parts[MODEL].sha256
    return EngineKey(model=model, runtime=runtime, version=version, architecture=architecture, flags=flags)


def differences(kept: EngineKey, wanted: EngineKey, *, to_run: bool = False) -> tuple[str, ...]:
    """One phrase for each field that differs; ``to_run`` looks at what an engine must fit to run at all."""
    fields = _TO_RUN if to_run else EngineKey.__struct_fields__
    pairs = ((name, getattr(kept, name), getattr(wanted, name)) for name in fields)
    return tuple(f"{name}: {a[:20] or 'none'}, here {b[:20] or 'none'}" for name, a, b in pairs if a != b)


def architectures(parts: Iterable[str]) -> tuple[str, ...]:
    """Of the engines among ``parts``."""
    return tuple(name.removeprefix(ENGINE_PREFIX) for name in parts if name.startswith(ENGINE_PREFIX))


def require_engine(bundle: OpenBundle, wanted: EngineKey) -> bytes:
    """The verified engine for this machine. Raises BundleError that names every field that differs."""
    part, keys = engine_name(wanted.architecture), engine_keys(bundle)
    fix = f"avq compile {bundle.path} --target {wanted.runtime}"
    if part not in keys:
        listed = ", ".join(architectures(bundle.manifest.parts))
        raise BundleError(
            f"the bundle {bundle.path} has no engine for this card",
            seen=f"{wanted.architecture or 'no card'}; compiled for {listed or 'none'}",
            fix=fix,
        )
    differing = differences(keys[part], wanted, to_run=True)
    if differing:
        raise BundleError(
            f"the engine {part} of {bundle.path} is not for this machine", seen="; ".join(differing), fix=fix
        )
    return bundle.read(part)
