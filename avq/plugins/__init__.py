"""Plugins: found by entry point, loaded by allow list, every registered name with one owner."""

from __future__ import annotations

from avq.plugins.host import GROUP, Owner, PluginHost, PluginRow, PluginsJson, plugin_tables
from avq.plugins.options import option_paths, validate_options

__all__ = [
    "GROUP",
    "Owner",
    "PluginHost",
    "PluginRow",
    "PluginsJson",
    "option_paths",
    "plugin_tables",
    "validate_options",
]
