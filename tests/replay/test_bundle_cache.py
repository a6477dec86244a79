"""Bundles of cases that are built from recipes: when a kept one still holds."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from avq.builder.request import options_of
from avq.config import load_recipe
from avq.plugins import PluginHost, option_paths
from avq.progress import Silent
from avq.replay.case import bundle_name, cached_bundle
from tests.conftest import ROOT
from tests.replay.replay_kit import null_bundle

RECIPES = ROOT / "tests" / "replay" / "cases" / "recipes"


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The import strategy, with its side file beside the recipe and two loose pictures."""
    (tmp_path / "pictures").mkdir()
    for name in ("a.jpg", "b.jpg", "grids.encodings", "model.onnx"):
        (tmp_path / ("pictures" if name.endswith("jpg") else "") / name).write_text(name)
    path = tmp_path / "recipe.toml"
    path.write_text(
        'model = "model.onnx"\ndata = "pictures"\nstrategy = "qat"\n[options]\nencodings = "grids.encodings"\n'
    )
    return path


def name_of(recipe: Path, host: PluginHost) -> str:
    return bundle_name(recipe, load_recipe(recipe, {"output": Path("-")}), host)


@pytest.mark.parametrize("changed", ["recipe.toml", "model.onnx", "grids.encodings", "pictures/c.jpg"])
def test_whatever_a_bundle_is_made_from_makes_it_another(
    recipe: Path, host: PluginHost, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name_of(recipe, host)
    monkeypatch.chdir("/")
    assert name_of(recipe, host) == before, "from any folder"
    with (recipe.parent / changed).open("a") as file:
        file.write("\n")
    assert name_of(recipe, host) != before


STRATEGY = """
from pydantic import BaseModel
from avq import hookimpl

class Options(BaseModel): ...

class Changing:
    name, version, options = "changing", "1", Options

@hookimpl
def avq_register_quantizers():
    return [Changing()]
"""


def test_the_strategys_code_counts(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = recipe.with_name("changing_strategy.py")
    code.write_text(STRATEGY)
    monkeypatch.syspath_prepend(str(recipe.parent))
    recipe.write_text('model = "model.onnx"\ndata = "pictures"\nstrategy = "changing"\n')
    host = PluginHost(extra={"changing": importlib.import_module("changing_strategy")})
    before = name_of(recipe, host)
    assert name_of(recipe, host) == before
    code.write_text(STRATEGY + "# another threshold\n")
    assert name_of(recipe, host) != before


def test_a_kept_bundle_is_not_built_again(recipe: Path, host: PluginHost, tmp_path: Path) -> None:
    kept = null_bundle(tmp_path / "cache" / name_of(recipe, host))
    assert cached_bundle(recipe, tmp_path / "cache", host, Silent()) == kept  # its model could not be built


def test_the_projects_own_recipes_name_files_that_are_there(
    host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    for path in sorted(RECIPES.glob("*.toml")):
        recipe = load_recipe(path, {"output": Path("-")})
        assert recipe.model.is_file() and recipe.data is not None and recipe.data.is_dir()
        assert all(file.is_file() for file in option_paths(options_of(recipe, host)))
