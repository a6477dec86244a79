"""What is wrong with a file, in words: file:line, the key, the reason and the nearest valid key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from avq.config.recipe import RecipeFile
from avq.config.toml import TomlFile
from avq.errors import AvqError, ConfigError, RequestError, nearest


def refusal(
    error: ValidationError,
    model: type[BaseModel],
    file: TomlFile | None,
    flags: Mapping[str, Any],
    kind: str,
) -> AvqError:
    """The error to raise: ConfigError with file:line, or RequestError where a flag is at fault."""
    problems = _causes_first(error.errors(include_url=False, include_context=False))
    first = problems[0]
    seen = "\n      ".join(_line(problem, file, flags) for problem in problems[:8])
    fix = _fix(first, model)
    if file is None or (first["loc"] and first["loc"][0] in flags):
        return RequestError(f"the {kind} is not valid", seen=seen, fix=fix)
    return ConfigError(f"{file.path} is not a valid {kind}", seen=seen, fix=fix)


def _causes_first(problems: Sequence[Any]) -> list[Any]:
    """A misspelled key explains the missing one; a list is only empty because its rows were refused."""
    own = [
        p
        for p in problems
        if p["type"] != "too_short"
        or not any(q["loc"][: len(p["loc"])] == p["loc"] and q is not p for q in problems)
    ]
    return sorted(own, key=lambda problem: problem["type"] != "extra_forbidden")


def _line(problem: Any, file: TomlFile | None, flags: Mapping[str, Any]) -> str:
    """``file:line: key: reason``; keys that came as flags have no line."""
    location = problem["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    reason = _reason(problem)
    if file is None or (location and location[0] in flags):
        return f"{key}: {reason}"
    return f"{file.path}:{file.line_of(location)}: {key + ': ' if key else ''}{reason}"


def _reason(problem: Any) -> str:
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return "unknown key"
    if kind == "missing":
        return "is needed and was not given"
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    return f"{text}, got {value!r}" if isinstance(value, str | int | float) else text


def _fix(problem: Any, model: type[BaseModel]) -> str:
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        return nearest(str(location[-1]), owner.model_fields if owner else ())
    if kind == "missing" and model is RecipeFile:
        return "avq build MODEL.onnx --data DIR -o BUNDLE"
    field = _field_at(model, location)
    if kind == "literal_error" and field is not None:
        return nearest(str(problem["input"]), map(str, get_args(field.annotation)))
    if field is not None and field.description:
        return f"{field.title}: {field.description}"
    return "avq config schema shows every key"


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
