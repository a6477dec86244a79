"""Errors of configuration files: file:line, key, reason and the nearest valid key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from avq.config.line_numbers import TomlFile
from avq.config.recipe import RecipeFile
from avq.errors import AvqError, ConfigError, RequestError, nearest

_MAX_SHOWN = 8
#: Keys whose values are never shown.
_SECRET = re.compile(r"token|secret|passw|credential|_key$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Problem:
    """One invalid value.

    Attributes:
        location: path of the key, as pydantic reports it.
        reason: why the value is invalid.
        fix: what to write instead.
    """

    location: tuple[str | int, ...]
    reason: str
    fix: str = ""


def refusal(
    problems: Sequence[Problem], file: TomlFile | None, flags: Mapping[str, Any], kind: str
) -> AvqError:
    """Return the error to raise: a ConfigError with file:line, or a RequestError if a flag is invalid."""
    first = problems[0]
    seen = "\n      ".join(_line(problem, file, flags) for problem in problems[:_MAX_SHOWN])
    if file is None or (first.location and first.location[0] in flags):
        return RequestError(f"the {kind} is not valid", seen=seen, fix=first.fix)
    return ConfigError(f"{file.path} is not a valid {kind}", seen=seen, fix=first.fix)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Translate the errors of pydantic, causes before consequences."""
    errors = _causes_first(error.errors(include_url=False, include_context=False))
    return [Problem(item["loc"], _reason(item), _fix(item, model)) for item in errors]


def _causes_first(problems: Sequence[Any]) -> list[Any]:
    """Put unknown keys before missing ones; drop "too short" of a list whose rows were refused."""
    causes = [
        p
        for p in problems
        if p["type"] != "too_short"
        or not any(q["loc"][: len(p["loc"])] == p["loc"] and q is not p for q in problems)
    ]
    return sorted(causes, key=lambda problem: problem["type"] != "extra_forbidden")


def _line(problem: Problem, file: TomlFile | None, flags: Mapping[str, Any]) -> str:
    """Return ``file:line: key: reason``; a flag has no line."""
    location = problem.location
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if file is None or (location and location[0] in flags):
        return f"{key}: {problem.reason}"
    return f"{file.path}:{file.line_of(location)}: {key + ': ' if key else ''}{problem.reason}"


def _reason(problem: Any) -> str:
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is required"
    if kind == "tuple_type" and isinstance(value, dict):
        return f"is a list of tables: write [[{problem['loc'][-1]}]] once for each"
    if kind in ("model_type", "model_attributes_type") and isinstance(value, list):
        return f"is a single table: write [{problem['loc'][-1]}] once"
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if any(_SECRET.search(str(part)) for part in problem["loc"]):
        return text
    return f"{text}, got {value!r}" if isinstance(value, str | int | float) else text


def _fix(problem: Any, model: type[BaseModel]) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return _right_table(location, model)
    if kind == "missing" and model is RecipeFile:
        return "avq build MODEL.onnx --data DIR -o BUNDLE"
    field = _field_at(model, location)
    if kind == "literal_error" and field is not None:
        return nearest(str(problem["input"]), map(str, get_args(field.annotation)))
    if field is not None and field.description:
        return f"{field.title}: {field.description}"
    return "avq config schema lists every key"


def _right_table(location: Sequence[str | int], model: type[BaseModel]) -> str:
    """Suggest the table that has this key, and the nearest key of this table."""
    owner, key = _model_at(model, location[:-1]), str(location[-1])
    known = owner.model_fields if owner else {}
    tables = [] if owner is None else [table for table, fields in _tables(model) if key in fields]
    hint = f"'{key}' belongs in {' or '.join(tables)}; " if tables else ""
    return hint + nearest(key, known)


def _tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Mapping[str, FieldInfo]]]:
    """List every table of a document with its keys, named as in a file."""
    yield (path or "the top of the file, above all tables"), model.model_fields
    for name, field in model.model_fields.items():
        inner = _inner_model(field)
        if inner is not None:
            brackets = "[[{}]]" if getattr(field.annotation, "__origin__", None) is tuple else "[{}]"
            yield from _tables(inner, brackets.format(name))


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """Return the model whose keys are at ``location``; list indices are skipped."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current is not None else None
        current = _inner_model(field)
    return current


def _inner_model(field: FieldInfo | None) -> type[BaseModel] | None:
    if field is None:
        return None
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _field_at(model: type[BaseModel], location: Sequence[str | int]) -> FieldInfo | None:
    names = [part for part in location if isinstance(part, str)]
    owner = _model_at(model, names[:-1])
    if owner is None or not names:
        return None
    return owner.model_fields.get(names[-1])
