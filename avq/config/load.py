"""Read a file, make its paths absolute to its folder, check it against its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from avq.config.checks import run_problems
from avq.config.errors import Problem, problems_of, refusal
from avq.config.fields import Document, beside
from avq.config.line_numbers import TomlFile, read_toml
from avq.config.recipe import RecipeFile
from avq.config.run import RunConfig
from avq.config.sinks import RecorderConfig
from avq.errors import RequestError, nearest
from avq.types import Recipe

# ``key=value`` words of the command line.


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


Kind = Literal["run", "recipe"]
RUN = "run configuration"
_Document = TypeVar("_Document", bound=Document)
_KINDS: dict[Kind, type[Document]] = {"run": RunConfig, "recipe": RecipeFile}


def load_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe at ``path`` (or none) with ``overrides`` on top, keyed like the file.

    Overrides that are None are not given; ``options`` and ``map`` are merged key by key. Paths in the file are
    relative to it; those among the options are for the strategy's model to tell (``Recipe.option_folders``).
    Raises ConfigError (file:line) or RequestError (a flag).
    """
    file = read_toml(path) if path is not None else None
    data = dict(file.data) if file else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    for key in ("options", "map"):
        if isinstance(data.get(key), dict) and key in given:
            given[key] = {**data[key], **given[key]}
    recipe = _validated(RecipeFile, {**data, **given}, file, given, "recipe").recipe()
    flags = overrides.get("options") or {}
    named_here = {key: file.path.parent for key in recipe.options if file and key not in flags}
    return replace(recipe, option_folders=named_here)


def recipe_from(path: Path | None, flags: Mapping[str, Any]) -> Recipe:
    """``load_recipe`` for the flags of ``avq build`` as click delivers them."""
    given = dict(flags)
    options, maps = given.pop("options", ()), given.pop("maps", ())
    given["gate"] = False if given.pop("no_gate", False) else None
    given["options"] = key_values(options) if options else None
    given["map"] = parse_class_map(maps) if maps else None
    if isinstance(given.get("gpu_arch"), str):
        given["gpu_arch"] = tuple(part.strip() for part in given["gpu_arch"].split(",") if part.strip())
    return load_recipe(path, given)


def load_run(path: Path) -> RunConfig:
    """The run configuration at ``path``. Raises ConfigError with file:line."""
    return read_run(path)[0]


def read_run(path: Path) -> tuple[RunConfig, TomlFile]:
    """``load_run``, and the file, to tell where something stands."""
    file = read_toml(path)
    config = _validated(RunConfig, file.data, file, {}, RUN)
    refuse(run_problems(config), file, "run")
    return config, file


def read_recipe(path: Path) -> tuple[RecipeFile, TomlFile]:
    """A recipe as it stands; it may leave model and output to the command line. Raises ConfigError."""
    file = read_toml(path)
    stand_in = {key: "-" for key in ("model", "output") if key not in file.data}
    return _validated(RecipeFile, {**file.data, **stand_in}, file, stand_in, "recipe"), file


def refuse(problems: Sequence[Problem], file: TomlFile, kind: Kind) -> None:
    """Raise ConfigError when there are any."""
    if problems:
        raise refusal(problems, file, {}, RUN if kind == "run" else "recipe")


def recorder_from(base: RecorderConfig | None, flags: Mapping[str, Any]) -> RecorderConfig | None:
    """The table [recorder] with flags on top; None where there is neither. Raises RequestError."""
    given = {key: value for key, value in flags.items() if value is not None}
    if not given:
        return base
    whole = {**(base.model_dump(exclude_unset=True) if base else {}), **given}
    return _validated(RecorderConfig, whole, None, whole, "log")


def load_document(path: Path, model: type[_Document], kind: str) -> _Document:
    """Any other document of that model; ``kind`` names it in errors. Raises ConfigError with file:line."""
    file = read_toml(path)
    return _validated(model, file.data, file, {}, kind)


def file_kind(path: Path) -> Kind:
    """What the file looks like: "run" or "recipe". Raises ConfigError when it is no TOML."""
    return _kind_of(read_toml(path).data)


def check_file(path: Path) -> Kind:
    """Validate ``path`` as what it looks like, and say which: "run" or "recipe"."""
    kind = file_kind(path)
    if kind == "run":
        read_run(path)
    else:
        read_recipe(path)
    return kind


def json_schema(kind: str) -> dict[str, Any]:
    """JSON schema of a document: "run" or "recipe"."""
    model = {str(name): document for name, document in _KINDS.items()}.get(kind)
    if model is None:
        raise RequestError(f"there is no configuration kind '{kind}'", fix=nearest(kind, _KINDS))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def _kind_of(data: Mapping[str, Any]) -> Kind:
    """The document whose keys the file shares most; a run when in doubt."""
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
        return model.model_validate(data, context=beside(file.path.parent, flags) if file else None)
    except ValidationError as error:
        raise refusal(problems_of(error, model), file, flags, kind) from None
