"""The ``?key=value&...`` part of source and sink URIs, and URIs without their passwords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from avq.errors import RequestError, nearest

T = TypeVar("T", bound=str)


def parameters(uri: str, valid: Iterable[str]) -> dict[str, str]:
    """The ``?key=value&...`` part of a URI. Raises RequestError on a key that is not valid."""
    names = list(valid)
    table: dict[str, str] = {}
    for key, value in parse_qsl(uri.partition("?")[2], keep_blank_values=True):
        if key not in names:
            raise RequestError(
                f"unknown parameter '{key}'", seen=redact_credentials(uri), fix=nearest(key, names)
            )
        table[key] = value
    return table


def number(table: Mapping[str, str], key: str, default: float, low: float, high: float) -> float:
    """A parameter as a number within ``low``..``high``. Raises RequestError."""
    text = table.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise RequestError(f"parameter '{key}' is not valid", seen=text, fix=f"a number {low:g}..{high:g}")
    return value


def whole(table: Mapping[str, str], key: str, default: int, low: int, high: int) -> int:
    """A parameter as a whole number within ``low``..``high``. Raises RequestError."""
    value = number(table, key, default, low, high)
    if value != int(value):
        raise RequestError(f"parameter '{key}' is not a whole number", seen=table[key], fix=f"{int(value)}")
    return int(value)


def one_of(table: Mapping[str, str], key: str, choices: Sequence[T]) -> T:
    """A parameter that is one of ``choices``; the first when it is absent. Raises RequestError."""
    text = table.get(key, choices[0])
    for choice in choices:
        if choice == text:
            return choice
    raise RequestError(f"parameter '{key}' is not valid", seen=text, fix=nearest(text, choices))


def redact_credentials(uri: str) -> str:
    """``uri`` without its password, for messages."""
    try:
        password = urlsplit(uri).password
    except ValueError:
        return uri.rsplit("@", maxsplit=1)[-1]
    return uri.replace(f":{password}@", ":***@") if password else uri
