"""Typed ``?key=value&...`` parameters of the URIs of sources and sinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from avq.errors import RequestError, nearest
from avq.redaction import redact_uri

T = TypeVar("T", bound=str)


def parameters(uri: str, valid: Iterable[str]) -> dict[str, str]:
    """Read the ``?key=value&...`` part of a URI.

    Args:
        uri: the whole URI.
        valid: accepted keys.

    Raises:
        RequestError: a key is not in ``valid``.
    """
    names = list(valid)
    table: dict[str, str] = {}
    for key, value in parse_qsl(uri.partition("?")[2], keep_blank_values=True):
        if key not in names:
            raise RequestError(f"unknown parameter '{key}'", seen=redact_uri(uri), fix=nearest(key, names))
        table[key] = value
    return table


def number(table: Mapping[str, str], key: str, default: float, low: float, high: float) -> float:
    """Read a parameter as a number within ``low``..``high``; ``default`` when it is absent.

    Raises:
        RequestError: it is not a number, or outside the range.
    """
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
    """Read a parameter as a whole number within ``low``..``high``; ``default`` when it is absent.

    Raises:
        RequestError: it is not a whole number, or outside the range.
    """
    value = number(table, key, default, low, high)
    if value != int(value):
        raise RequestError(f"parameter '{key}' is not a whole number", seen=table[key], fix=f"{int(value)}")
    return int(value)


def one_of(table: Mapping[str, str], key: str, choices: Sequence[T]) -> T:
    """Read a parameter that is one of ``choices``; the first choice when it is absent.

    Raises:
        RequestError: it is none of them.
    """
    text = table.get(key, choices[0])
    for choice in choices:
        if choice == text:
            return choice
    raise RequestError(f"parameter '{key}' is not valid", seen=text, fix=nearest(text, choices))
