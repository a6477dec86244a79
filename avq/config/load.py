"""Read configuration files and command-line values, and validate them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from avq.config.checks import run_problems
from avq.config.errors import Problem, problems_of, refusal
from avq.config.fields import Document, path_context
from avq.config.line_numbers import TomlFile, read_toml
from avq.config.recipe import RecipeFile
from avq.config.run import RunConfig
from avq.config.sinks import RecorderConfig
from avq.errors import RequestError, nearest
from avq.types import Recipe


def parse_class_map(entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``["vehicle=car,bus", "person=pedestrian"]`` into {label category: (model classes)}.

    Raises:
        RequestError: an entry does not read ``category=class[,class...]``, or a category is given twice.
    """
    table: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        category, equals, classes = entry.partition("=")
        names = tuple(name.strip() for name in classes.split(",") if name.strip())
        if not equals or not category.strip() or not names or category.strip() in table:
            raise RequestError(
                "--map must read category=class[,class...], once per category",
                seen=entry,
                fix="for example: --map vehicle=car,bus,truck",
            )
        table[category.strip()] = names
    return table


def key_values(entries: Sequence[str]) -> dict[str, str]:
    """Parse ``("a=1", "b=2")`` into a mapping.

    Raises:
        RequestError: an entry does not read key=value.
    """
    table: dict[str, str] = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise RequestError(
                "--option must read key=value", seen=entry, fix="for example: --option calibrator=mse"
            )
        table[key] = value
    return table


Kind = Literal["run", "recipe"]
RUN = "run configuration"
_Document = TypeVar("_Document", bound=Document)
_KINDS: dict[Kind, type[Document]] = {"run": RunConfig, "recipe": RecipeFile}


def load_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        path: recipe file; None uses the overrides alone.
        overrides: values keyed like the file. None means not given. ``options`` and ``map`` are merged key by key.

    Returns:
        The recipe. Paths in the file are relative to its folder. Options may be paths too: ``Recipe.option_folders``
        holds the folder of each option that comes from the file.

    Raises:
        ConfigError: a value in the file is invalid; the error names file:line.
        RequestError: an override is invalid.
    """
    file = read_toml(path) if path is not None else None
    data = dict(file.data) if file else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    for key in ("options", "map"):
        if isinstance(data.get(key), dict) and key in given:
            given[key] = {**data[key], **given[key]}
    recipe = _validated(RecipeFile, {**data, **given}, file, given, "recipe").recipe()
    flags = overrides.get("options") or {}
    option_folders = {key: file.path.parent for key in recipe.options if file and key not in flags}
    return replace(recipe, option_folders=option_folders)


def recipe_from(path: Path | None, flags: Mapping[str, Any]) -> Recipe:
    """Load a recipe with the flags of ``avq build`` as click passes them."""
    given = dict(flags)
    options, maps = given.pop("options", ()), given.pop("maps", ())
    if given.pop("no_gate", False):
        given["gate"] = False
    given["force"] = given.get("force") or None
    given["options"] = key_values(options) if options else None
    given["map"] = parse_class_map(maps) if maps else None
    if isinstance(given.get("gpu_arch"), str):
        given["gpu_arch"] = tuple(part.strip() for part in given["gpu_arch"].split(",") if part.strip())
    return load_recipe(path, given)


def load_run(path: Path) -> RunConfig:
    """Load the run configuration at ``path``; ConfigError names file:line."""
    return read_run(path)[0]


def read_run(path: Path) -> tuple[RunConfig, TomlFile]:
    """Load a run configuration, and return the parsed file for line numbers too."""
    file = read_toml(path)
    config = _validated(RunConfig, file.data, file, {}, RUN)
    refuse(run_problems(config), file, "run")
    return config, file


def read_recipe(path: Path) -> tuple[RecipeFile, TomlFile]:
    """Load a recipe file that may leave model and output to the command line; ConfigError names file:line."""
    file = read_toml(path)
    placeholders = {key: "-" for key in ("model", "output") if key not in file.data}
    return _validated(RecipeFile, {**file.data, **placeholders}, file, placeholders, "recipe"), file


def refuse(problems: Sequence[Problem], file: TomlFile, kind: Kind) -> None:
    """Raise ConfigError if there are problems."""
    if problems:
        raise refusal(problems, file, {}, RUN if kind == "run" else "recipe")


def recorder_from(base: RecorderConfig | None, flags: Mapping[str, Any]) -> RecorderConfig | None:
    """Apply flags to the table [recorder]; None without both. RequestError for an invalid flag."""
    given = {key: value for key, value in flags.items() if value is not None}
    if not given:
        return base
    values = {**(base.model_dump(exclude_unset=True) if base else {}), **given}
    return _validated(RecorderConfig, values, None, values, "log")


def load_document(path: Path, model: type[_Document], kind: str) -> _Document:
    """Load a document of another model; ``kind`` names it in errors. ConfigError names file:line."""
    file = read_toml(path)
    return _validated(model, file.data, file, {}, kind)


def file_kind(path: Path) -> Kind:
    """Return "run" or "recipe", by the keys of the file. ConfigError if it is not TOML."""
    return _kind_of(read_toml(path).data)


def check_file(path: Path) -> Kind:
    """Validate a file, and return its kind: "run" or "recipe"."""
    kind = file_kind(path)
    if kind == "run":
        read_run(path)
    else:
        read_recipe(path)
    return kind


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a document: "run" or "recipe"."""
    model = {str(name): document for name, document in _KINDS.items()}.get(kind)
    if model is None:
        raise RequestError(f"unknown configuration kind '{kind}'", fix=nearest(kind, _KINDS))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _kind_of(data: Mapping[str, Any]) -> Kind:
    """Return the kind that shares the most keys with the file; "run" if equal."""
    shared = {kind: len(set(data) & set(model.model_fields)) for kind, model in _KINDS.items()}
    return "recipe" if shared["recipe"] > shared["run"] else "run"


def _validated(
    model: type[_Document],
    data: Mapping[str, Any],
    file: TomlFile | None,
    flags: Mapping[str, Any],
    kind: str,
) -> _Document:
    try:
        return model.model_validate(data, context=path_context(file.path.parent, flags) if file else None)
    except ValidationError as error:
        raise refusal(problems_of(error, model), file, flags, kind) from None
