"""Plugins: found by entry point, loaded by allow list, every registered name with one owner.

A plugin that cannot be loaded, implements an unknown hook or takes a name that is taken stops the program:
half a set of plugins would quietly build something else.

Hooks are called through pluggy, once per implementation: so the owner of each answer is known, an observer that
fails stops no other, and wrappers (``hookimpl(wrapper=True)``) and tracing work. A wrapper runs around every
implementation of its hook; it gets and returns the list of its answers.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pluggy

import avq
from avq import hookspecs
from avq.errors import PluginError, RequestError, nearest
from avq.plugins.options import OptionRow, option_rows
from avq.types import Finding, GraphView, Recipe

GROUP = "avq"

#: Packages of avq that register through the same hooks; always loaded, without metadata.
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
    """A plugin: the name of its entry point and the installed package it came with."""

    name: str
    package: str
    version: str

    def __str__(self) -> str:
        return f"plugin '{self.name}' of {self.package} {self.version}".rstrip()


class PluginRow(TypedDict):
    """One plugin; ``owner`` and ``package`` are its installed package."""

    name: str
    owner: str
    package: str
    version: str
    hooks: list[str]
    brings: list[str]
    options: list[OptionRow]


class PluginsJson(TypedDict):
    """Object of ``avq plugins --json``."""

    plugins: list[PluginRow]


class _Implementation:
    """One function of a plugin as pluggy registers it: its only hook is the attribute of that name.

    pluggy leaves whole plugins out of a call, so each function is one.
    """

    def __init__(self, owner: Owner, hook: str, function: Callable[..., Any], *, wraps: bool) -> None:
        self.owner, self.hook, self.wraps = owner, hook, wraps
        setattr(self, hook, function)


@dataclass
class PluginHost:
    """The loaded plugins.

    Args:
        allow: names of the entry points to load; None loads all. A name that is not installed is an error.
        extra: further plugin objects by name, as if they had been installed (tests, embedding programs).

    Attributes:
        manager: pluggy's, for ``enable_tracing`` and ``add_hookcall_monitoring``.

    Raises:
        PluginError: a plugin cannot be loaded, or does not fit the hooks.
    """

    allow: Sequence[str] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self._owners: dict[str, Owner] = {}
        self._plugins: dict[str, object] = {}
        self._implementations: list[_Implementation] = []
        self._registered: dict[str, dict[str, tuple[Any, Owner]]] = {}
        for owner, point in _entry_points(self.allow):
            self._register(owner, _loaded(owner, point))
        for name, plugin in self.extra.items():
            self._register(Owner(name, getattr(plugin, "__name__", type(plugin).__name__), ""), plugin)

    def quantizers(self) -> tuple[hookspecs.Quantizer, ...]:
        """Give the strategies, by name."""
        return self._things("avq_register_quantizers")

    def quantizer(self, name: str) -> hookspecs.Quantizer:
        """Give the strategy of that name; RequestError with the nearest name when there is none."""
        table = self._table("avq_register_quantizers")
        if name not in table:
            raise RequestError(f"there is no strategy '{name}'", fix=nearest(name, table))
        strategy: hookspecs.Quantizer = table[name][0]
        return strategy

    def engines(self) -> tuple[hookspecs.Engine, ...]:
        """Give the engines, built-in ones too, by name."""
        return self._things("avq_register_engines")

    def running_engines(self) -> dict[str, hookspecs.Engine]:
        """Give the engines that can run on this machine, by name."""
        return {engine.name: engine for engine in self.engines() if engine.status().can_run}

    def decoders(self) -> tuple[hookspecs.Decoder, ...]:
        """Give the head families of plugins; PluginError for one that avq has itself."""
        from avq.decoders import builtin_decoders

        table = self._table("avq_register_decoders")
        for family in (decoder.family for decoder in builtin_decoders() if decoder.family in table):
            raise PluginError(f"{table[family][1]} brings the decoder '{family}', which avq has itself")
        return self._things("avq_register_decoders")

    def decoder_packages(self) -> dict[str, str]:
        """Give family -> package and version of the plugin that brings it."""
        table = self._table("avq_register_decoders")
        return {family: f"{owner.package} {owner.version}".rstrip() for family, (_, owner) in table.items()}

    def sources(self) -> tuple[hookspecs.SourceType, ...]:
        """Give the source types of plugins, by scheme."""
        return self._things("avq_register_sources")

    def sinks(self) -> tuple[hookspecs.SinkType, ...]:
        """Give the sink types of plugins, by scheme."""
        return self._things("avq_register_sinks")

    # Hooks of builds and runs

    def keep_float(self, graph: GraphView, recipe: Recipe) -> dict[str, str]:
        """Node name -> reason, all answers united; PluginError for a node the graph has not."""
        known = {node.name for node in graph.nodes}
        united: dict[str, str] = {}
        for owner, answer in self._answers("avq_keep_float", graph=graph, recipe=recipe):
            for name, reason in dict(answer).items():
                if name not in known:
                    raise PluginError(
                        f"{owner} keeps an unknown node '{name}' float", fix=nearest(name, known)
                    )
                united[name] = f"{united[name]}; {reason}" if name in united else reason
        return united

    def check_bundle(self, bundle: Path, recipe: Recipe) -> list[Finding]:
        """Findings of all plugins about a staged bundle."""
        answers = self._answers("avq_check_bundle", bundle=bundle, recipe=recipe)
        return [finding for _, findings in answers for finding in findings]

    def build_finished(self, bundle: Path, report: Mapping[str, Any]) -> tuple[str, ...]:
        """Notify all plugins; returns one line per plugin that failed, the bundle stands."""
        return self._notify("avq_build_finished", bundle=bundle, report=report)

    def budget_missed(self, event: Mapping[str, Any]) -> tuple[str, ...]:
        """Notify all plugins; returns one line per plugin that failed, the others are still called."""
        return self._notify("avq_budget_missed", event=event)

    def listing(self) -> list[PluginRow]:
        """One row per plugin: name, owner (its package), version, hooks, what it brings, and its options.

        Options are rows too: strategy, option, type, default (None and required: true where there is none),
        and what it does.
        """
        return [self._row(name, owner) for name, owner in self._owners.items()]

    def _row(self, name: str, owner: Owner) -> PluginRow:
        brought = {
            f"{_KINDS[hook][0]} {taken}": thing
            for hook in _KINDS
            for taken, (thing, who) in self._table(hook).items()
            if who == owner
        }
        quantizers = self._table("avq_register_quantizers").values()
        options = [row for quantizer, who in quantizers if who == owner for row in option_rows(quantizer)]
        return {
            "name": name,
            "owner": owner.package,
            "package": owner.package,
            "version": owner.version,
            "hooks": sorted({one.hook for one in self._implementations if one.owner == owner}),
            "brings": list(brought),
            "options": options,
        }

    def _register(self, owner: Owner, plugin: object) -> None:
        if owner.name in self._owners:
            raise PluginError(
                f"two plugins are called '{owner.name}'",
                seen=f"{self._owners[owner.name]} and {owner}",
                fix="uninstall one of them",
            )
        other = next((name for name, known in self._plugins.items() if known is plugin), None)
        if other is not None:
            raise PluginError(f"{owner} is already registered", seen=str(self._owners[other]))
        for name, implementation in self._hooks_of(owner, plugin):
            try:
                self.manager.register(implementation, f"{owner.name}.{name}")
            except pluggy.PluginValidationError as error:
                raise PluginError(f"{owner} does not fit a hook", seen=str(error).strip()) from error
            self._implementations.append(implementation)
        self._owners[owner.name], self._plugins[owner.name] = owner, plugin

    def _hooks_of(self, owner: Owner, plugin: object) -> list[tuple[str, _Implementation]]:
        """(name of the function, its implementation); PluginError for a hook that avq does not have."""
        known = [name for name in vars(hookspecs) if name.startswith("avq_")]
        marked = [(name, self.manager.parse_hookimpl_opts(plugin, name)) for name in dir(plugin)]
        hooks = []
        for name, marks in marked:
            if marks is None:
                continue
            hook = marks["specname"] or name
            if hook not in known:
                raise PluginError(f"{owner} implements an unknown hook '{hook}'", fix=nearest(hook, known))
            wraps = marks["wrapper"] or marks["hookwrapper"]
            hooks.append((name, _Implementation(owner, hook, getattr(plugin, name), wraps=wraps)))
        return hooks

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
        for owner, things in self._answers(hook):
            for thing in things:
                for name in _called(owner, hook, partial(_tuple_of, names_of, thing)):
                    _claim(table, kind, name, thing, owner)
        return table

    def _answers(self, hook: str, **arguments: Any) -> Iterator[tuple[Owner, Any]]:
        """(owner, answer) of every implementation; PluginError for what one of them raises."""
        for owner, call in self._calls(hook, **arguments):
            for answer in _called(owner, hook, call):
                yield owner, answer

    def _calls(self, hook: str, **arguments: Any) -> list[tuple[Owner, Callable[[], list[Any]]]]:
        """(owner, call) of every implementation, by plugin name; a call runs one of them and all wrappers."""
        plain = [one for one in self._implementations if one.hook == hook and not one.wraps]
        return [
            (mine.owner, partial(self._caller(hook, [one for one in plain if one is not mine]), **arguments))
            for mine in sorted(plain, key=lambda one: one.owner.name)
        ]

    def _caller(self, hook: str, others: Sequence[_Implementation]) -> Callable[..., list[Any]]:
        return self.manager.subset_hook_caller(hook, others)

    def _notify(self, hook: str, **arguments: Any) -> tuple[str, ...]:
        failed: list[str] = []
        for owner, call in self._calls(hook, **arguments):
            try:
                call()
            except Exception as error:
                failed.append(f"{owner}: {hook}: {type(error).__name__}: {error}")
        return tuple(failed)


def _entry_points(allow: Sequence[str] | None) -> list[tuple[Owner, importlib.metadata.EntryPoint]]:
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
    return sorted(unique.values(), key=lambda entry: entry[0].name)


def _owner(point: importlib.metadata.EntryPoint) -> Owner:
    package = point.dist
    if package is None:
        return Owner(point.name, "avq", avq.__version__)
    return Owner(point.name, package.name, package.version)


def _loaded(owner: Owner, point: importlib.metadata.EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # an import may raise anything
        raise PluginError(
            f"{owner} cannot be loaded",
            seen=f"{type(error).__name__}: {error}",
            fix=f"repair or uninstall it: pip uninstall {owner.package}",
        ) from error


def _called(owner: Owner, hook: str, call: Callable[[], Any]) -> Any:
    """The answer of the call; an exception in it becomes a PluginError that names the plugin."""
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


# The listing as tables.


def plugin_tables(listing: Sequence[PluginRow]) -> list[tuple[str, list[dict[str, object]]]]:
    """Turn ``PluginHost.listing()`` into two tables: the plugins, and the options of their strategies."""
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
    options = [_option_row(option) for row in listing for option in row["options"]]
    return [("Plugins", plugins), ("Options, given as --option NAME=VALUE", options)]


def _option_row(row: OptionRow) -> dict[str, object]:
    default = row["default"]
    listed = ",".join(map(str, default)) or "(empty)" if isinstance(default, list) else default
    return {
        "strategy": row["strategy"],
        "option": row["option"],
        "type": row["type"],
        "default": "(required)" if row["required"] else "none" if listed is None else str(listed),
        "what it does": row["description"],
    }
