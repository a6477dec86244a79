"""Engines compiled into a bundle, each with a key of its inputs: an engine is used only where all of them match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from avq import __version__
from avq.bundle.manifest import ENGINE_PREFIX, MODEL
from avq.bundle.reader import OpenBundle
from avq.errors import BundleError

#: The part that lists the keys of all engines, by their parts' names.
ENGINES = "engines.json"
#: Fields that must match for an engine to run; the others decide whether a new build would give the same.
_TO_RUN = ("model", "runtime", "version", "architecture")


class EngineKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Inputs on which an engine depends.

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
    """Return the name of the part, such as "engine.sm87"."""
    return f"{ENGINE_PREFIX}{architecture}"


def engines_part(keys: Mapping[str, EngineKey]) -> bytes:
    """Return the content of the part ``ENGINES``."""
    return msgspec.json.encode(dict(sorted(keys.items())), order="sorted")


def engine_keys(bundle: OpenBundle) -> dict[str, EngineKey]:
    """Return part name -> key of every compiled engine; empty when none is compiled."""
    if not bundle.has(ENGINES):
        return {}
    try:
        listed = msgspec.json.decode(bundle.read(ENGINES), type=dict[str, EngineKey])
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"the part '{ENGINES}' of {bundle.path} cannot be read",
            seen=str(error),
            fix="compile the bundle again",
        ) from None
    return {name: key for name, key in listed.items() if bundle.has(name)}


def wanted_key(
    bundle: OpenBundle, runtime: str, version: str, architecture: str, flags: str = ""
) -> EngineKey:
    """Return the key that an engine built now on this machine from the bundle's model would have."""
    model = bundle.manifest.parts[MODEL].sha256
    return EngineKey(model=model, runtime=runtime, version=version, architecture=architecture, flags=flags)


def differences(kept: EngineKey, wanted: EngineKey, *, to_run: bool = False) -> tuple[str, ...]:
    """Return one phrase per differing field; ``to_run`` compares only the fields an engine needs to run."""
    fields = _TO_RUN if to_run else EngineKey.__struct_fields__
    pairs = ((name, getattr(kept, name), getattr(wanted, name)) for name in fields)
    return tuple(f"{name}: {a[:20] or 'none'}, here {b[:20] or 'none'}" for name, a, b in pairs if a != b)


def architectures(parts: Iterable[str]) -> tuple[str, ...]:
    """Return the architectures of the engines among ``parts``."""
    return tuple(name.removeprefix(ENGINE_PREFIX) for name in parts if name.startswith(ENGINE_PREFIX))


def require_engine(bundle: OpenBundle, wanted: EngineKey) -> bytes:
    """Return the verified engine for this machine. Raises BundleError with every differing field."""
    part, keys = engine_name(wanted.architecture), engine_keys(bundle)
    fix = f"avq compile {bundle.path} --target {wanted.runtime}"
    if part not in keys:
        listed = ", ".join(architectures(bundle.manifest.parts))
        raise BundleError(
            f"the bundle {bundle.path} has no engine for this GPU",
            seen=f"{wanted.architecture or 'no GPU'}; compiled for {listed or 'none'}",
            fix=fix,
        )
    differing = differences(keys[part], wanted, to_run=True)
    if differing:
        raise BundleError(
            f"the engine {part} of {bundle.path} is not for this machine", seen="; ".join(differing), fix=fix
        )
    return bundle.read(part)
