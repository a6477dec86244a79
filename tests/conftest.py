"""Fixtures shared by every room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from avq.engines.cpu import has_eight_bit_dot, instruction_set, is_x86
from tests.parallel.ray_pool import ray_workers

__all__ = ["PRODUCTS_SATURATE", "ROOT", "material", "material_folder", "ray_workers"]

#: x86 without VNNI adds pairs of byte products in 16 bits: full-range INT8 is wrong here, and refused.
PRODUCTS_SATURATE = is_x86() and not has_eight_bit_dot(instruction_set())

ROOT = Path(__file__).resolve().parents[1]
# The same examples in every run, and none judged by how long it took: a busy machine is no fault of the code.
settings.register_profile(
    "avq", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("avq")


def material_folder() -> Path | None:
    """The folder of real models, pictures and videos, when this machine has it."""
    folder = Path(os.environ.get("AVQ_MATERIAL", ROOT.parent / "shared" / "material"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def material() -> Path:
    """Real models, pictures and videos; the test is skipped where they are absent."""
    folder = material_folder()
    if folder is None:
        pytest.skip("no material folder: set AVQ_MATERIAL to run this test on real models and pictures")
    return folder


#: Fixtures that take seconds, paid by the first test that needs one: whole builds, pip, Ray.
_SLOW_FIXTURES = {"built", "pending", "four_bits", "installed", "ray_workers"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs a slow fixture."""
    for item in items:
        if not _SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
