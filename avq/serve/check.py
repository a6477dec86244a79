"""``avq config check``: a file against its model, the installed plugins, and the bundle it names.

No source, sink or network is opened, so the check also works on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from avq.bundle import open_bundle
from avq.config import (
    Kind,
    Problem,
    RecipeFile,
    RunConfig,
    file_kind,
    implausible,
    read_recipe,
    read_run,
    refuse,
)
from avq.daemon import sink_types, source_types
from avq.decoders import builtin_decoders
from avq.errors import AvqError, nearest
from avq.hookspecs import UriChecker
from avq.plugins import PluginHost, validate_options
from avq.sinks import sink_key

_Location = tuple["str | int", ...]
#: Camera keys that only mean something where a source can go away and come back.
_LIVE_ONLY = ("reconnect", "max_restarts", "window_s")


class CheckJson(TypedDict):
    """Object of ``avq config check --json``; an invalid file is an error instead."""

    file: str
    kind: Kind
    valid: bool
    remarks: list[str]


def check_config(path: Path, host: PluginHost) -> CheckJson:
    """What kind of file it is, that it is valid, and what could not be looked at.

    Raises ConfigError with file:line, the key, the reason and the nearest valid key.
    """
    kind = file_kind(path)
    remarks: list[str] = []
    if kind == "run":
        config, file = read_run(path)
        problems = [*implausible(config), *_cameras(config, host), *_sinks(config, host)]
        problems += _bundle(config, remarks)
    else:
        recipe, file = read_recipe(path)
        problems = list(_recipe(recipe, host, path.parent))
    refuse(problems, file, kind)
    return {"file": str(path), "kind": kind, "valid": True, "remarks": remarks}


def _cameras(config: RunConfig, host: PluginHost) -> Iterator[Problem]:
    kinds = {scheme: kind for kind in (*source_types(), *host.sources()) for scheme in kind.schemes}
    for index, camera in enumerate(config.cameras):
        at: _Location = ("cameras", index, "source")
        scheme, remote, _ = camera.source.partition("://")
        if remote and scheme != "file":
            known = [name for name in kinds if name[0].isalpha()]
            yield from _unknown(at, scheme.lower(), known, "no source opens")
            yield from _check_uri(at, kinds.get(scheme.lower()), camera.source)
            continue
        suffix = Path(camera.source.removeprefix("file://").partition("?")[0]).suffix.lower()
        if suffix and not Path(camera.source).exists():
            yield from _unknown(at, suffix, [name for name in kinds if name[0] == "."], "no source opens")
        yield from _check_uri(at, kinds.get(suffix), camera.source)
        for key in _LIVE_ONLY:
            if key in camera.model_fields_set:
                reason = f"{camera.source} is a file or folder: it does not go away and come back"
                yield Problem(("cameras", index, key), reason, "drop this key")


def _sinks(config: RunConfig, host: PluginHost) -> Iterator[Problem]:
    kinds = {scheme: kind for kind in (*sink_types(), *host.sinks()) for scheme in kind.schemes}
    for index, sink in enumerate(config.sinks):
        at: _Location = ("sinks", index, "uri")
        key = sink_key(sink.uri, set(kinds))
        yield from _unknown(at, key, kinds, "no sink writes")
        yield from _check_uri(at, kinds.get(key), sink.address())


def _unknown(at: _Location, key: str, known: Mapping[str, Any] | list[str], what: str) -> Iterator[Problem]:
    if key not in known:
        yield Problem(at, f"{what} '{key or 'names without a suffix'}'", nearest(key, known))


def _check_uri(at: _Location, kind: Any, uri: str) -> Iterator[Problem]:
    """What the type that claims a URI says against it."""
    if isinstance(kind, UriChecker):
        try:
            kind.check(uri)
        except AvqError as error:
            yield _problem(at, error)


def _problem(at: _Location, error: AvqError) -> Problem:
    what = error.what[:1].lower() + error.what[1:]
    return Problem(at, f"{what}, got {error.seen}" if error.seen else what, error.fix)


def _bundle(config: RunConfig, remarks: list[str]) -> Iterator[Problem]:
    """Whether alerts wait for classes that the bundle has; a bundle that is not there yet is remarked."""
    if not config.bundle.exists():
        if any(alert.classes for alert in config.alerts):
            remarks.append(f"the bundle {config.bundle} is not there: classes of alerts were not checked")
        return
    try:
        labels = open_bundle(config.bundle, allow_unaccepted=True).manifest.class_names
    except AvqError as error:
        yield _problem(("bundle",), error)
        return
    for index, alert in enumerate(config.alerts):
        for name in alert.classes or ():
            if name not in labels:
                reason = f"the bundle has no class '{name}'"
                yield Problem(("alerts", index, "classes"), reason, nearest(name, labels))


def _recipe(recipe: RecipeFile, host: PluginHost, folder: Path) -> Iterator[Problem]:
    strategies = {one.name: one for one in host.quantizers()}
    yield from _unknown(("strategy",), recipe.strategy, ["float", *strategies], "there is no strategy")
    if recipe.strategy in strategies:
        try:
            folders = dict.fromkeys(recipe.options, folder)
            validate_options(strategies[recipe.strategy], recipe.options, folders)
        except AvqError as error:
            key = next((key for key in recipe.options if f"'{key}'" in error.what), None)
            yield _problem(("options",) if key is None else ("options", key), error)
    targets = ["cpu", *(engine.name for engine in host.engines())]
    yield from _unknown(("target",), recipe.target, targets, "there is no target")
    families = ["none", *(one.family for one in (*builtin_decoders(), *host.decoders()))]
    if recipe.decoder is not None:
        yield from _unknown(("decoder",), recipe.decoder, families, "there is no decoder")
