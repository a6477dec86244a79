"""Configuration files: TOML checked against models; an error names file:line, the key and the nearest valid one.

Two documents: a recipe (``avq build --recipe``) and a run (``avq run CONFIG.toml``). Relative paths in a
file are relative to the file's folder; paths given as flags are relative to where the command runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from avq.config_toml import TomlFile, read_toml
from avq.errors import ConfigError, RequestError, nearest
from avq.types import LatencyBudget, Recipe

Kind = Literal["run", "recipe"]
_Document = TypeVar("_Document", bound="Document")


def _as_option(value: Any) -> Any:
    """Option values become text; the strategy's own model gives them their type."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


OptionValue = Annotated[str, BeforeValidator(_as_option)]
Count = Annotated[int, Field(strict=True, ge=1)]
PositiveNumber = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)]
Ratio = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], Field(min_length=1)]


class Document(BaseModel):
    """Unknown keys are refused; what was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipeFile(Document):
    """What ``avq build`` is asked for; every key may also be a flag, which wins."""

    model: Path = Field(title="Model", description="the float ONNX file")
    output: Path = Field(title="Output", description="the bundle folder to write")
    data: Path | None = Field(
        default=None, title="Data", description="calibration pictures: a folder or a set"
    )
    strategy: Text = Field(default="static", title="Strategy", description="a registered quantizer, or float")
    target: Text = Field(
        default="cpu",
        title="Target",
        description="what the bundle must run on: cpu, or the name of an engine",
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict, title="Options", description="the strategy's own options"
    )
    budget_ms: PositiveNumber | None = Field(
        default=None, title="Latency budget", description="wanted p50 of the engine, milliseconds"
    )
    max_drop: Percent | None = Field(
        default=None, title="Tolerated loss", description="percent: relative mAP with labels, else lost boxes"
    )
    gate: Switch = Field(
        default=True, title="Gate", description="false writes a refused bundle, accepted:false"
    )
    labels: Path | None = Field(default=None, title="Labels", description="COCO json for the pictures")
    map: dict[str, Names] = Field(
        default_factory=dict, title="Class map", description="label category = list of model classes"
    )
    calibration: Path | None = Field(
        default=None, title="Calibration", description="an .avqcal file instead of a calibration pass"
    )
    decoder: Text | None = Field(default=None, title="Decoder", description="head family, or none")
    preprocess: Text | None = Field(
        default=None, title="Preprocessing", description="preset name or JSON file"
    )
    classes: Text | None = Field(default=None, title="Classes", description="class-name file, or coco")
    threads: Count = Field(
        default=1, title="Threads", description="threads of the engine, in timing and service"
    )
    gpu_arch: tuple[Text, ...] = Field(
        default=(),
        title="GPU architectures",
        description='compute capabilities for GPU targets, such as ["sm89"]',
    )

    def recipe(self) -> Recipe:
        """The same as the build's own type."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Recipe(class_map=values.pop("map"), **values)


class Camera(Document):
    """One source of frames."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = Field(
        title="Camera id", description="letters, digits, '_' and '-'; names the camera in every message"
    )
    source: Text = Field(
        title="Source", description="scene://, a file, a folder, rtsp://, v4l2:///dev/video0 or log.mcap"
    )
    policy: Literal["auto", "every", "newest"] = Field(
        default="auto",
        title="Frame policy",
        description="auto: newest wins for live sources, every frame of files",
    )
    open_timeout_ms: Count = Field(
        default=5000, title="Open timeout", description="milliseconds to open the source"
    )
    read_timeout_ms: Count = Field(
        default=2000, title="Read timeout", description="milliseconds to wait for a frame"
    )
    reconnect: Switch = Field(
        default=True, title="Reconnect", description="false: a camera's first failure is its end"
    )
    max_restarts: Count = Field(
        default=8, title="Restarts", description="of a camera's capture process within window_s, at most"
    )
    window_s: PositiveNumber = Field(
        default=60.0, title="Restart window", description="seconds over which restarts are counted"
    )


class Budget(Document):
    """How late is late."""

    deadline_ms: PositiveNumber = Field(
        default=100.0, title="Deadline", description="allowed time from capture to publish, milliseconds"
    )
    window_frames: Count = Field(
        default=30, title="Window", description="frames over which misses are judged"
    )
    max_miss_ratio: Ratio = Field(
        default=0.1, title="Tolerated misses", description="share of late frames in the window, 0 to 1"
    )

    def latency_budget(self) -> LatencyBudget:
        """The same in nanoseconds, as the daemon takes it."""
        return LatencyBudget(round(self.deadline_ms * 1e6), self.window_frames, self.max_miss_ratio)


class ModeConfig(Document):
    """One rung of the ladder: what is done when the modes before it are too slow."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = Field(
        title="Mode name", description="letters, digits, '_', '.' and '-'; stands in every message"
    )
    bundle: Path | None = Field(
        default=None, title="Bundle", description="the bundle this mode serves; the run's own when not given"
    )
    stride: Count = Field(
        default=1, title="Stride", description="every so many-th frame of each camera is processed"
    )


class ShadowConfig(Document):
    """A candidate that looks at frames in spare time and publishes nothing."""

    bundle: Path = Field(title="Shadow bundle", description="the bundle to compare with the one that serves")
    every_n: Count = Field(
        default=10, title="Shadow interval", description="every so many-th published frame is compared"
    )


class DriftConfig(Document):
    """Whether the scene is still what the bundle was calibrated on."""

    every_n: Count = Field(
        default=60,
        title="Drift interval",
        description="every so many-th published frame is looked at; they should be seconds apart",
    )


class SinkConfig(Document):
    """Where messages go."""

    uri: Text = Field(
        title="URI", description="- for standard output, out.jsonl, out.mcap, or a plugin's scheme"
    )


class Security(Document):
    """Whose bundles are served."""

    require_signature: Switch = Field(
        default=False,
        title="Require a signature",
        description="refuse every bundle that no trusted key signed",
    )
    trusted_keys: tuple[Path, ...] = Field(
        default=(), title="Trusted keys", description="public keys (.pub files of avq bundle keygen)"
    )
    not_before: Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2}(T.*)?)?$")] = Field(
        default="", title="Not before", description="refuse bundles created earlier, ISO 8601 UTC"
    )

    @model_validator(mode="after")
    def _keys_and_demand_go_together(self) -> Security:
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature needs trusted_keys; make a pair with avq bundle keygen")
        if not self.require_signature and (self.trusted_keys or self.not_before):
            raise ValueError("trusted_keys and not_before do nothing without require_signature = true")
        return self


class RunConfig(Document):
    """What ``avq run`` serves."""

    bundle: Path = Field(title="Bundle", description="the bundle folder to serve")
    cameras: tuple[Camera, ...] = Field(min_length=1, title="Cameras", description="where frames come from")
    budget: Budget = Field(default=Budget(), title="Latency budget", description="how late is late")
    modes: tuple[ModeConfig, ...] = Field(
        default=(), title="Modes", description="the ladder, best work first; without it the bundle alone"
    )
    shadow: ShadowConfig | None = Field(
        default=None, title="Shadow", description="a candidate to compare before anyone promotes it"
    )
    drift: DriftConfig | None = Field(
        default=None, title="Drift", description="watch for scenes unlike the calibration pictures"
    )
    sinks: tuple[SinkConfig, ...] = Field(default=(), title="Sinks", description="where messages go")
    frames: Count | None = Field(
        default=None, title="Frame limit", description="stop after so many published frames"
    )
    allow_unaccepted: Switch = Field(
        default=False, title="Allow unaccepted", description="serve a bundle that its gate refused"
    )
    security: Security = Field(default=Security(), title="Security", description="whose bundles are served")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", title="Log level", description="how much is said on standard error"
    )

    @model_validator(mode="after")
    def _cameras_are_unique(self) -> RunConfig:
        ids = [camera.id for camera in self.cameras]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"cameras share the id {', '.join(twice)}; ids must be unique")
        return self

    @model_validator(mode="after")
    def _modes_differ(self) -> RunConfig:
        names = [mode.name for mode in self.modes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"modes share the name {', '.join(twice)}; names must be unique")
        seen: dict[tuple[Path, int], str] = {}
        for mode in self.modes:
            work = (mode.bundle or self.bundle, mode.stride)
            if work in seen:
                raise ValueError(
                    f"the modes {seen[work]} and {mode.name} are the same bundle at the same stride; "
                    "a mode must be cheaper than the one before"
                )
            seen[work] = mode.name
        return self

    @model_validator(mode="after")
    def _shadow_is_another_bundle(self) -> RunConfig:
        if self.shadow is not None and self.shadow.bundle == self.bundle:
            raise ValueError("the shadow is the bundle that serves; name the candidate to compare with it")
        return self


_KINDS: dict[Kind, type[Document]] = {"run": RunConfig, "recipe": RecipeFile}


def load_recipe(path: Path | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe at ``path`` (or none) with ``overrides`` on top, keyed like the file.

    Overrides that are None are not given; ``options`` and ``map`` are merged key by key.
    Raises ConfigError (file:line) or RequestError (a flag).
    """
    file = read_toml(path) if path is not None else None
    data = _beside(file, ("model", "output", "data", "labels", "calibration")) if file else {}
    given = {key: value for key, value in overrides.items() if value is not None}
    for key in ("options", "map"):
        if isinstance(data.get(key), dict) and key in given:
            given[key] = {**data[key], **given[key]}
    return _validated(RecipeFile, {**data, **given}, file, given, "recipe").recipe()


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
    file = read_toml(path)
    return _validated(RunConfig, _run_beside(file), file, {}, "run configuration")


def check_file(path: Path) -> Kind:
    """Validate ``path`` as what it looks like, and say which: "run" or "recipe"."""
    file = read_toml(path)
    kind = _kind_of(file.data)
    if kind == "run":
        load_run(path)
    else:
        _check_recipe_file(file)
    return kind


def json_schema(kind: str) -> dict[str, Any]:
    """JSON schema of a document: "run" or "recipe"."""
    model = {str(name): document for name, document in _KINDS.items()}.get(kind)
    if model is None:
        raise RequestError(f"there is no configuration kind '{kind}'", fix=nearest(kind, _KINDS))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


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


def _kind_of(data: Mapping[str, Any]) -> Kind:
    """The document whose keys the file shares most; a run when in doubt."""
    shared = {kind: len(set(data) & set(model.model_fields)) for kind, model in _KINDS.items()}
    return "recipe" if shared["recipe"] > shared["run"] else "run"


def _check_recipe_file(file: TomlFile) -> None:
    """A recipe may leave model and output to the command line."""
    stand_in = {key: "-" for key in ("model", "output") if key not in file.data}
    _validated(RecipeFile, {**file.data, **stand_in}, file, stand_in, "recipe")


def _beside(file: TomlFile, keys: Sequence[str]) -> dict[str, Any]:
    """The file's data with relative paths made relative to the file's folder."""
    data = dict(file.data)
    for key in keys:
        if isinstance(data.get(key), str):
            data[key] = str(file.path.parent / data[key])
    return data


def _run_beside(file: TomlFile) -> dict[str, Any]:
    data = _beside(file, ("bundle",))
    if isinstance(data.get("modes"), list):
        data["modes"] = [_with_path(row, "bundle", file.path.parent) for row in data["modes"]]
    data.update(
        {"shadow": _with_path(data["shadow"], "bundle", file.path.parent)} if "shadow" in data else {}
    )
    for table, key in (("cameras", "source"), ("sinks", "uri")):
        if isinstance(data.get(table), list):
            data[table] = [_with_local_uri(row, key, file.path.parent) for row in data[table]]
    security = data.get("security")
    if isinstance(security, dict) and isinstance(security.get("trusted_keys"), list):
        keys = [
            str(file.path.parent / key) if isinstance(key, str) else key for key in security["trusted_keys"]
        ]
        data["security"] = {**security, "trusted_keys": keys}
    return data


def _with_path(row: Any, key: str, folder: Path) -> Any:
    """The table with a path made relative to the file's folder."""
    path = row.get(key) if isinstance(row, dict) else None
    return {**row, key: str(folder / path)} if isinstance(path, str) and path else row


def _with_local_uri(row: Any, key: str, folder: Path) -> Any:
    """Plain paths are relative to the file; anything with a scheme, and "-", is left as it is."""
    uri = row.get(key) if isinstance(row, dict) else None
    if not isinstance(uri, str) or not uri or uri == "-" or ":" in uri.partition("?")[0]:
        return row
    return {**row, key: str(folder / uri)}


def _validated(
    model: type[_Document],
    data: Mapping[str, Any],
    file: TomlFile | None,
    flags: Mapping[str, Any],
    kind: str,
) -> _Document:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = _causes_first(error.errors(include_url=False, include_context=False))
    first = problems[0]
    seen = "\n      ".join(_line(problem, file, flags) for problem in problems[:8])
    fix = _fix(first, model)
    if file is None or (first["loc"] and first["loc"][0] in flags):
        raise RequestError(f"the {kind} is not valid", seen=seen, fix=fix)
    raise ConfigError(f"{file.path} is not a valid {kind}", seen=seen, fix=fix)


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
