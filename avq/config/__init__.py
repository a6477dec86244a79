"""Configuration files: TOML validated by models. An error names file:line, the key and the nearest valid key.

There are two documents: a recipe (``avq build --recipe``) and a run (``avq run CONFIG.toml``). Paths in a file are
relative to the file's folder; paths given as flags are relative to the working directory.
"""

from avq.config.checks import implausible
from avq.config.errors import Problem
from avq.config.load import (
    Kind,
    check_file,
    file_kind,
    json_schema,
    key_values,
    load_document,
    load_recipe,
    load_run,
    parse_class_map,
    read_recipe,
    read_run,
    recipe_from,
    recorder_from,
    refuse,
)
from avq.config.recipe import RecipeFile
from avq.config.run import (
    Budget,
    Camera,
    DriftConfig,
    LogFilters,
    LogLevel,
    ModeConfig,
    RunConfig,
    Security,
    ShadowConfig,
    WebConfig,
    is_loopback,
)
from avq.config.sinks import AlertConfig, RecorderConfig, SinkConfig

__all__ = [
    "AlertConfig", "Budget", "Camera", "DriftConfig", "Kind", "LogLevel", "LogFilters", "ModeConfig", "Problem",
    "RecipeFile", "RecorderConfig", "RunConfig", "Security", "ShadowConfig", "SinkConfig", "WebConfig", "check_file",
    "file_kind",
    "implausible", "is_loopback", "json_schema", "key_values", "load_document", "load_recipe", "load_run",
    "parse_class_map", "read_recipe", "read_run", "recipe_from", "recorder_from", "refuse",
]  # fmt: skip
