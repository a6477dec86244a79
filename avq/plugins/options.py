"""Options of a strategy: text from flags and files in, its own model out; and what there is to choose."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import ValidationError

from avq import hookspecs
from avq.errors import RequestError, nearest

if TYPE_CHECKING:
    from pydantic import BaseModel

#: Option values of these types are written with commas.
_LISTS = (list, tuple, set, frozenset)


def validate_options(
    quantizer: hookspecs.Quantizer, given: Mapping[str, Any], folders: Mapping[str, Path] | None = None
) -> BaseModel:
    """The strategy's options from ``--option k=v`` text (or values of a recipe file).

    Lists are comma separated, "none" is None where that is allowed. ``folders`` holds, for options that a file
    named, its folder: relative paths of such an option are taken from there. Raises RequestError for an unknown
    key (with the nearest) or a value that does not fit.
    """
    model = quantizer.options
    for key in given:
        if key not in model.model_fields:
            raise RequestError(
                f"the strategy '{quantizer.name}' has no option '{key}'", fix=nearest(key, model.model_fields)
            )
    values = {
        key: _from_text(value, model.model_fields[key].annotation, (folders or {}).get(key))
        for key, value in given.items()
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ", ".join(given)
        raise RequestError(
            f"the option '{name}' of strategy '{quantizer.name}' does not fit",
            seen=f"{name}={given.get(name, '')}",
            fix=first["msg"],
        ) from error


def _from_text(value: Any, annotation: Any, folder: Path | None) -> Any:
    """``value`` in the shape of its field; below ``folder`` where it is a relative path."""
    if not isinstance(value, str):
        return value
    choices = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    if type(None) in choices and value.lower() == "none":
        return None
    listed = any(typing.get_origin(c) in _LISTS for c in choices)
    parts = [part.strip() for part in value.split(",") if part.strip()] if listed else [value]
    if folder is not None and _are_paths(choices):
        parts = [str(folder / part) for part in parts]
    return parts if listed else parts[0]


def _are_paths(choices: Sequence[Any]) -> bool:
    """Path, or a list of them, and nothing else but None: "auto" beside a path is no file."""
    kinds = [choice for choice in choices if choice not in (type(None), Ellipsis)]
    return bool(kinds) and all(_is_path(kind) for kind in kinds)


def _is_path(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _is_path(typing.get_args(kind)[0])
    if origin in _LISTS:
        return _are_paths(typing.get_args(kind))
    return isinstance(kind, type) and issubclass(kind, PurePath)


def option_paths(options: BaseModel | None) -> tuple[Path, ...]:
    """Files and folders that validated options name."""
    values = () if options is None else dict(options).values()
    flat = (one for value in values for one in (value if isinstance(value, _LISTS) else (value,)))
    return tuple(one for one in flat if isinstance(one, Path))


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


class OptionRow(TypedDict):
    """One option of a strategy; ``default`` is a JSON value, null where ``required`` is true."""

    strategy: str
    option: str
    type: str
    default: Any
    required: bool
    description: str


def option_rows(quantizer: hookspecs.Quantizer) -> list[OptionRow]:
    """Give one row per option of a strategy."""
    fields = quantizer.options.model_fields
    return [
        {
            "strategy": quantizer.name,
            "option": name,
            "type": _type_text(info.annotation),
            "default": None
            if info.is_required()
            else _json_value(info.get_default(call_default_factory=True)),
            "required": info.is_required(),
            "description": info.description or "",
        }
        for name, info in fields.items()
    ]


def _type_text(annotation: Any) -> str:
    """As people write it after ``--option``: "auto | mse", "float", "list of str", "int | none"."""
    inner = [_type_text(part) for part in typing.get_args(annotation) if part is not Ellipsis]
    kind = typing.get_origin(annotation)
    if kind is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(annotation))
    if _is_union(annotation):
        return " | ".join(inner)
    if kind is typing.Annotated:
        return inner[0]
    if kind in _LISTS:
        return f"list of {', '.join(dict.fromkeys(inner))}"
    if annotation is type(None):
        return "none"
    return getattr(annotation, "__name__", "") or str(annotation).removeprefix("typing.")


def _json_value(value: Any) -> Any:
    """A default as JSON can say it; text where it cannot."""
    if isinstance(value, (list, tuple, set, frozenset)):
        listed = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_json_value(item) for item in listed]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
