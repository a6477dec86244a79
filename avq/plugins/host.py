"""Plugins: found by entry point, loaded by allow list, every registered name with one owner.

A plugin that cannot be loaded, implements an unknown hook or takes a name that is taken stops the program:
half a set of plugins would quietly build something else.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

import avq
from avq import hookspecs
from avq.errors import PluginError, RequestError, nearest
from avq.plugins.options import option_rows
from avq.types import Finding, GraphView, Recipe

GROUP = "avq"

#: Rooms of avq that register through the same hooks as anyone else; always loaded, found without metadata.
_BUILT_IN = {"engines": "avq.engines"}

#: Registering hook -> how the objects it brings are called, and the names each of them takes.
_KINDS: dict[str, tuple[str, Callable[[Any], Iterable[str]]]] = {
    "avq_register_quantizers": ("quantizer", lambda thing: (thing.name,)),
    "avq_register_engines": ("engine", lambda thing: (thing.name,)),
    "avq_register_decoders": ("decoder", lambda thing: (thing.family,)),
    "avq_register_sources": ("source scheme", lambda thing: tuple(thing.schemes)),
    "avq_register_sinks": ("sink scheme", lambda thing: tuple(thing.schemes)),
}


@dataclass(frozen=True, slots=True)
class Owner:
    """Who brought something: the entry point's name and the installed package it came with."""

    name: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"plugin '{self.name}' of {self.package} {self.version}".rstrip()


@dataclass
class PluginHost:
    """The loaded plugins.

    Args:
        allow: names of the entry points to load; None loads all. A name that is not installed is an error.
        extra: further plugin objects by name, as if they had been installed (tests, embedding programs).
    """

    allow: Sequence[str] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._manager = pluggy.PluginManager("avq")
        self._manager.add_hookspecs(hookspecs)
        self._owners: dict[str, Owner] = {}
        self._registered: dict[str, dict[str, tuple[Any, Owner]]] = {}
        for owner, load in _found(self.allow):
            self._register(owner, _loaded(owner, load))
        for name, plugin in self.extra.items():
            self._register(Owner(name, getattr(plugin, "__name__", type(plugin).__name__), ""), plugin)

    # What plugins bring

    def quantizers(self) -> tuple[hookspecs.Quantizer, ...]:
        return self._things("avq_register_quantizers")

    def quantizer(self, name: str) -> hookspecs.Quantizer:
        """The strategy of that name; RequestError with the nearest name when there is none."""
        table = self._table("avq_register_quantizers")
        if name not in table:
            raise RequestError(f"there is no strategy '{name}'", fix=nearest(name, table))
        found: hookspecs.Quantizer = table[name][0]
        return found

    def engines(self) -> tuple[hookspecs.Engine, ...]:
        return self._things("avq_register_engines")

    def running_engines(self) -> dict[str, hookspecs.Engine]:
        """The engines that can run on this machine, by name."""
        return {engine.name: engine for engine in self.engines() if engine.status().can_run}

    def decoders(self) -> tuple[hookspecs.Decoder, ...]:
        from avq.decoders import builtin_decoders

        table = self._table("avq_register_decoders")
        for family in (decoder.family for decoder in builtin_decoders() if decoder.family in table):
            raise PluginError(f"{table[family][1]} brings the decoder '{family}', which avq has itself")
        return self._things("avq_register_decoders")

    def sources(self) -> tuple[hookspecs.SourceType, ...]:
        return self._things("avq_register_sources")

    def sinks(self) -> tuple[hookspecs.SinkType, ...]:
        return self._things("avq_register_sinks")

    # What plugins are asked and told

    def keep_float(self, graph: GraphView, recipe: Recipe) -> dict[str, str]:
        """Node name -> reason, all answers united; PluginError for a node the graph has not."""
        known = {node.name for node in graph.nodes}
        united: dict[str, str] = {}
        for owner, call in self._calls("avq_keep_float", graph=graph, recipe=recipe):
            answer = dict(_asked(owner, "avq_keep_float", call) or {})
            for name, reason in answer.items():
                if name not in known:
                    raise PluginError(
                        f"{owner} keeps an unknown node '{name}' float", fix=nearest(name, known)
                    )
                united[name] = f"{united[name]}; {reason}" if name in united else reason
        return united

    def check_bundle(self, bundle: Path, recipe: Recipe) -> list[Finding]:
        """Findings of all plugins about a staged bundle."""
        calls = self._calls("avq_check_bundle", bundle=bundle, recipe=recipe)
        return [f for owner, call in calls for f in _asked(owner, "avq_check_bundle", call) or ()]

    def build_finished(self, bundle: Path, report: Mapping[str, Any]) -> tuple[str, ...]:
        """Tell all plugins; what went wrong in one of them is returned, the bundle stands."""
        return self._tell("avq_build_finished", bundle=bundle, report=report)

    def budget_missed(self, event: Mapping[str, Any]) -> tuple[str, ...]:
        """Tell all plugins; what went wrong in one of them is returned and stops nobody."""
        return self._tell("avq_budget_missed", event=event)

    def listing(self) -> list[dict[str, Any]]:
        """One row per plugin: name, owner (its package), version, hooks, what it brings, and its options.

        Options are rows too: strategy, option, type, default (None and required: true where there is none),
        and what it does.
        """
        return [self._row(name, owner) for name, owner in self._owners.items()]

    def _row(self, name: str, owner: Owner) -> dict[str, Any]:
        brought = {
            f"{_KINDS[hook][0]} {taken}": thing
            for hook in _KINDS
            for taken, (thing, who) in self._table(hook).items()
            if who == owner
        }
        options = [row for thing in brought.values() for row in option_rows(thing)]
        return {
            "name": name,
            "owner": owner.package,
            "package": owner.package,
            "version": owner.version,
            "hooks": sorted(h.name for h in self._manager.get_hookcallers(self._plugin(name)) or ()),
            "brings": list(brought),
            "options": options,
        }

    def _plugin(self, name: str) -> object:
        return self._manager.get_plugin(name)

    def _register(self, owner: Owner, plugin: object) -> None:
        self._check_hooks(owner, plugin)
        if owner.name in self._owners:
            raise PluginError(
                f"two plugins are called '{owner.name}'",
                seen=f"{self._owners[owner.name]} and {owner}",
                fix="uninstall one of them",
            )
        try:
            self._manager.register(plugin, owner.name)
        except ValueError as error:  # the same object under two names
            raise PluginError(f"{owner} is already registered", seen=str(error)) from error
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{owner} does not fit a hook", seen=str(error).strip()) from error
        self._owners[owner.name] = owner

    def _check_hooks(self, owner: Owner, plugin: object) -> None:
        known = [name for name in vars(hookspecs) if name.startswith("avq_")]
        for name in dir(plugin):
            marks = self._manager.parse_hookimpl_opts(plugin, name)
            wanted = name if marks is None else marks["specname"] or name
            if marks is not None and wanted not in known:
                raise PluginError(
                    f"{owner} implements an unknown hook '{wanted}'", fix=nearest(wanted, known)
                )

    def _things(self, hook: str) -> tuple[Any, ...]:
        """The objects a registering hook brought, each once, in order of their names."""
        table = self._table(hook)
        return tuple({id(table[name][0]): table[name][0] for name in sorted(table)}.values())

    def _table(self, hook: str) -> dict[str, tuple[Any, Owner]]:
        if hook not in self._registered:
            self._registered[hook] = self._collect(hook)
        return self._registered[hook]

    def _collect(self, hook: str) -> dict[str, tuple[Any, Owner]]:
        kind, names_of = _KINDS[hook]
        table: dict[str, tuple[Any, Owner]] = {}
        for owner, call in self._calls(hook):
            for thing in _asked(owner, hook, call) or ():
                for name in _asked(owner, hook, partial(_tuple_of, names_of, thing)):
                    _claim(table, kind, name, thing, owner)
        return table

    def _calls(self, hook: str, **arguments: Any) -> list[tuple[Owner, Callable[[], Any]]]:
        """(owner, call) of every implementation, in order of plugin name."""
        found = sorted(getattr(self._manager.hook, hook).get_hookimpls(), key=lambda i: str(i.plugin_name))
        return [(self._owners[impl.plugin_name], _bound(impl, arguments)) for impl in found]

    def _tell(self, hook: str, **arguments: Any) -> tuple[str, ...]:
        failed: list[str] = []
        for owner, call in self._calls(hook, **arguments):
            try:
                call()
            except Exception as error:
                failed.append(f"{owner}: {hook}: {type(error).__name__}: {error}")
        return tuple(failed)


def _found(allow: Sequence[str] | None) -> list[tuple[Owner, importlib.metadata.EntryPoint]]:
    """Installed entry points by name; only the allowed ones."""
    built_in = [importlib.metadata.EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()]
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value))
    installed = sorted({p.name for p in points})
    for name in allow or ():
        if name not in installed:
            raise PluginError(f"the plugin '{name}' is not installed", fix=nearest(name, installed))
    chosen = built_in + [p for p in points if allow is None or p.name in allow]
    # An editable install can be listed twice, by its source folder and by its wheel.
    unique = {(p.name, p.value): (_owner(p), p) for p in reversed(chosen)}
    return sorted(unique.values(), key=lambda found: found[0].name)


def _owner(point: importlib.metadata.EntryPoint) -> Owner:
    package = point.dist
    if package is None:
        return Owner(point.name, "avq", avq.__version__)
    return Owner(point.name, package.name, package.version)


def _loaded(owner: Owner, point: importlib.metadata.EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # whatever an import may run into
        raise PluginError(
            f"{owner} cannot be loaded",
            seen=f"{type(error).__name__}: {error}",
            fix=f"repair or uninstall it: pip uninstall {owner.package}",
        ) from error


def _bound(impl: Any, arguments: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: impl.function(*(arguments[name] for name in impl.argnames))


def _asked(owner: Owner, hook: str, call: Callable[[], Any]) -> Any:
    """The plugin's answer; whatever it raises becomes a PluginError that names it."""
    try:
        return call()
    except Exception as error:
        raise PluginError(f"{owner} failed in {hook}", seen=f"{type(error).__name__}: {error}") from error


def _tuple_of(names_of: Callable[[Any], Iterable[str]], thing: Any) -> tuple[str, ...]:
    return tuple(names_of(thing))


def _claim(table: dict[str, tuple[Any, Owner]], kind: str, name: str, thing: Any, owner: Owner) -> None:
    if name in table:
        raise PluginError(
            f"two plugins bring the {kind} '{name}'",
            seen=f"{table[name][1]} and {owner}",
            fix="uninstall one of them, or allow only the other in the configuration",
        )
    table[name] = (thing, owner)


# What plugins bring, as tables for people.


def plugin_tables(listing: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, object]]]]:
    """``PluginHost.listing()`` as two tables for people: the plugins, and the options of their strategies."""
    plugins: list[dict[str, object]] = [
        {
            "name": row["name"],
            "version": row["version"],
            "owner": row["owner"],
            "hooks": "\n".join(row["hooks"]),
            "brings": "\n".join(row["brings"]),
        }
        for row in listing
    ]
    options = [_told_option(option) for row in listing for option in row["options"]]
    return [("Plugins", plugins), ("Options, given as --option NAME=VALUE", options)]


def _told_option(row: Mapping[str, Any]) -> dict[str, object]:
    default = row["default"]
    listed = ",".join(map(str, default)) or "(empty)" if isinstance(default, list) else default
    told = "none" if listed is None else listed
    return {
        "strategy": row["strategy"],
        "option": row["option"],
        "type": row["type"],
        "default": "(required)" if row["required"] else str(told),
        "what it does": row["description"],
    }
