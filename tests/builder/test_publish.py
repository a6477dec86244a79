"""What a build may replace, and where it leaves a refused bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from avq.builder.stage import rejected_folder, require_same_source
from avq.bundle import staging_folder, write_bundle
from avq.errors import BundleError, RequestError
from avq.types import Recipe
from tests.bundle.test_bundle import PARTS, manifest


def write(output: Path, **changes: Any) -> None:
    write_bundle(staging_folder(output), output, manifest(**changes), PARTS)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"one model")
    return Recipe(model=model, output=tmp_path / "my.avq")


def test_an_accepted_bundle_of_another_model_is_replaced_by_force_only(recipe: Recipe) -> None:
    write(recipe.output, source_digest=hashlib.sha256(b"another model").hexdigest())
    with pytest.raises(RequestError) as refusal:
        require_same_source(recipe)
    assert "another model" in refusal.value.what and "--force" in refusal.value.fix
    forced = {f: getattr(recipe, f) for f in recipe.__slots__} | {"force": True}
    require_same_source(Recipe(**forced))


@pytest.mark.parametrize(
    "changes",
    [
        {"source_digest": hashlib.sha256(b"one model").hexdigest()},
        {"source_digest": "other", "accepted": False},
        {"source_digest": msgspec.UNSET},
    ],
    ids=["the same model", "a refused bundle", "an older release"],
)
def test_other_bundles_are_replaced(recipe: Recipe, changes: dict[str, Any]) -> None:
    write(recipe.output, **changes)
    require_same_source(recipe)


def test_the_place_of_a_refused_bundle_is_looked_at_first(recipe: Recipe) -> None:
    rejected = rejected_folder(recipe.output)
    assert rejected.name == "my.avq.rejected"
    write(rejected, accepted=False)
    require_same_source(recipe)
    (rejected / "manifest.json").unlink()
    with pytest.raises(BundleError):
        require_same_source(recipe)
