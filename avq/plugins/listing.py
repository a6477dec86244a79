"""What plugins bring, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


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
