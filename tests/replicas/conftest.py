"""What the builds of replicas for RTX share."""

from __future__ import annotations

from pathlib import Path

import pytest

from avq.scenes.dataset import write_labelled_set


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_labelled_set(folder, seeds=range(8_000_000, 8_000_008))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rtx")
