"""``key=value`` words of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from avq.errors import RequestError


def parse_class_map(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``["vehicle=car,bus", "person=pedestrian"]`` -> {label category: (model classes)}.

    Raises RequestError on an entry that is not ``category=class[,class...]`` or a category given twice.
    """
    table: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        category, equals, classes = entry.partition("=")
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
        if not equals or not category.strip() or not names or category.strip() in table:
            raise RequestError(
                "a class map must read category=class[,class...], one per category",
                seen=entry,
                fix="for example: --map vehicle=car,bus,truck",
            )
        table[category.strip()] = names
    return table


def key_values(entries: Sequence[str]) -> dict[str, str]:
    """``("a=1", "b=2")`` as a mapping; RequestError on anything else."""
    table: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise RequestError(
                "an option must read key=value", seen=entry, fix="for example: --option calibrator=mse"
            )
        table[key] = value
    return table
