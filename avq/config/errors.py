"""What is wrong with a file, in words: file:line, the key, the reason and the nearest valid key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from avq.config.line_numbers import TomlFile
from avq.config.recipe import RecipeFile
from avq.errors import AvqError, ConfigError, RequestError, nearest

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that cannot be. ``location`` is the key as pydantic names it; ``fix`` what to do."""

    location: tuple[str | int, ...]
    reason: str
    fix: str = ""


def refusal(
    problems: Sequence[Problem], file: TomlFile | None, flags: Mapping[str, Any], kind: str
) -> AvqError:
    """The error to raise: ConfigError with file:line, or RequestError where a flag is at fault."""
    first = problems[0]
    seen = "\n      ".join(_line(problem, file, flags) for problem in problems[:_SHOWN])
    if file is None or (first.location and first.location[0] in flags):
        return RequestError(f"the {kind} is not valid", seen=seen, fix=first.fix)
    return ConfigError(f"{file.path} is not a valid {kind}", seen=seen, fix=first.fix)


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """What pydantic found, in our words, causes first."""
    found = _causes_first(error.errors(include_url=False, include_context=False))
    return [Problem(one["loc"], _reason(one), _fix(one, model)) for one in found]


def _causes_first(problems: Sequence[Any]) -> list[Any]:
    """A misspelled key explains the missing one; a list is only empty because its rows were refused."""
    own = [
        p
        for p in problems
        if p["type"] != "too_short"
        or not any(q["loc"][: len(p["loc"])] == p["loc"] and q is not p for q in problems)
    ]
    return sorted(own, key=lambda problem: problem["type"] != "extra_forbidden")


def _line(problem: Problem, file: TomlFile | None, flags: Mapping[str, Any]) -> str:
    """``file:line: key: reason``; keys that came as flags have no line."""
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
        return "is needed and was not given"
    if kind == "tuple_type" and isinstance(value, dict):
        return f"is a list of tables: write [[{problem['loc'][-1]}]], once for each"
    if kind in ("model_type", "model_attributes_type") and isinstance(value, list):
        return f"is one table: write [{problem['loc'][-1]}], once"
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{text}, got {value!r}" if isinstance(value, str | int | float) else text


def _fix(problem: Any, model: type[BaseModel]) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        return _where_it_belongs(location, model)
    if kind == "missing" and model is RecipeFile:
        return "avq build MODEL.onnx --data DIR -o BUNDLE"
    field = _field_at(model, location)
    if kind == "literal_error" and field is not None:
        return nearest(str(problem["input"]), map(str, get_args(field.annotation)))
    if field is not None and field.description:
        return f"{field.title}: {field.description}"
    return "avq config schema shows every key"


def _where_it_belongs(location: Sequence[str | int], model: type[BaseModel]) -> str:
    """The nearest key here, unless another table has a key of this very name."""
    owner, key = _model_at(model, location[:-1]), str(location[-1])
    known = owner.model_fields if owner else {}
    homes = [] if owner is None else [table for table, fields in _tables(model) if key in fields]
    where = f"'{key}' belongs in {' or '.join(homes)}; " if homes else ""
    return where + nearest(key, known)


def _tables(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Mapping[str, FieldInfo]]]:
    """Every table of a document as it is written in a file, with its keys."""
    yield (path or "the top of the file, above every [table]"), model.model_fields
    for name, field in model.model_fields.items():
        inner = _inner_model(field)
        if inner is not None:
            brackets = "[[{}]]" if getattr(field.annotation, "__origin__", None) is tuple else "[{}]"
            yield from _tables(inner, brackets.format(name))


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    """The (sub)model whose keys stand at ``location``; list indices are passed over."""
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
