"""Bundles of cases that name a recipe: built once, kept by the digest of what they are made from."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from avq import __version__
from avq.bundle import is_bundle
from avq.config import load_recipe
from avq.errors import RequestError
from avq.plugins import PluginHost, option_paths
from avq.progress import Reporter
from avq.replay.log import file_digest
from avq.types import Recipe

#: Code of avq that decides what is in a bundle.
_CODE = ("avq.builder", "avq.toolbox")


def built(recipe_path: Path, cache: Path, host: PluginHost, report: Reporter) -> Path:
    """The bundle of a recipe, from the cache where nothing it is made from has changed since.

    Processes that want the same bundle wait for the one that builds it. Raises RequestError when the recipe's gate
    refuses, and what a build raises.
    """
    from avq.builder import build

    recipe = load_recipe(recipe_path, {"output": Path("-")})
    folder = cache / bundle_name(recipe_path, recipe, host)
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f".{folder.name}.lock"):
        if not is_bundle(folder):
            build(replace(recipe, output=folder), host, report)
    if not is_bundle(folder):
        raise RequestError(
            f"the recipe {recipe_path} gave no bundle",
            seen="its gate refused",
            fix="set gate = false in the recipe to replay it all the same",
        )
    return folder


def bundle_name(recipe_path: Path, recipe: Recipe, host: PluginHost) -> str:
    """Another one as soon as the recipe, a file it names, a picture, or the code that builds it is another."""
    from avq.builder.request import options_of

    named = (recipe.model, recipe.labels, recipe.calibration, recipe.preprocess, recipe.classes)
    files = [Path(name) for name in named if name is not None]
    files += option_paths(options_of(recipe, host))
    made_from = [
        __version__,
        recipe_path.read_text(),
        _set_digest(recipe.data),
        *(file_digest(path) for path in files if path.is_file()),
        *(_code_digest(package) for package in (*_CODE, *_strategy_package(recipe, host))),
    ]
    return f"{recipe_path.stem}-{hashlib.sha256(msgspec.json.encode(made_from)).hexdigest()[:16]}.avq"


def _set_digest(data: Path | None) -> str:
    """Of an index where there is one; a folder of loose pictures counts by its names."""
    if data is None:
        return ""
    index = data / "index.csv"
    return file_digest(index) if index.is_file() else ",".join(sorted(entry.name for entry in data.iterdir()))


def _strategy_package(recipe: Recipe, host: PluginHost) -> tuple[str, ...]:
    packages = {one.name: type(one).__module__.partition(".")[0] for one in host.quantizers()}
    return (packages[recipe.strategy],) if recipe.strategy in packages else ()


def _code_digest(package: str) -> str:
    """Of a package's Python files, or of a module."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return ""
    files = [Path(found.origin)]
    for place in found.submodule_search_locations or ():
        files = sorted(Path(place).rglob("*.py"))
    return hashlib.sha256("\n".join(map(file_digest, files)).encode()).hexdigest()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
