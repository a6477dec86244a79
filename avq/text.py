"""Text from outside: file names, JSON escapes and messages of plugins may hold what UTF-8 cannot encode."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

#: Control characters but line break and tab, and marks that change the direction of text.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)


def printable(text: str) -> str:
    """Show control characters, which a terminal would execute, as text: ``\\x1b``; line breaks and tabs stay."""
    return utf8(_CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text))


def utf8(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 holds, by their escapes: ``caf\\udce9.jpg``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text changed, keys too; the same object where none changes."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed = {map_texts(key, change): map_texts(item, change) for key, item in value.items()}
        return value if all(changed.get(key) is item for key, item in value.items()) else changed
    if isinstance(value, (list, tuple)):
        items = [map_texts(item, change) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else type(value)(items)
    return value
