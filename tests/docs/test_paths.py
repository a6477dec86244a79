"""Paths of the project that the developer pages name exist, and they lead to the code that they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "docs" / "architecture.md", ROOT / ".github" / "CONTRIBUTING.md"]
PATH = re.compile(r"(?<![\w./-])(?:avq|plugins|tests|docs|launch|\.github)/[\w./-]*")


def paths_in(text: str) -> set[str]:
    """Return paths below the folders of the project; names in capitals stand for any name."""
    snippets = [*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^    .*$", text, flags=re.MULTILINE)]
    paths = {path.rstrip(".") for snippet in snippets for path in PATH.findall(snippet)}
    return {path for path in paths if not re.search(r"[A-Z]{4}", path.replace("CONTRIBUTING", ""))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_on_the_page_exist(page: Path) -> None:
    paths = paths_in(page.read_text("utf-8"))
    assert len(paths) >= 8
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_package_is_on_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    packages = {path.parent.name for path in (ROOT / "avq").glob("*/__init__.py")} - {"build"}
    assert [name for name in sorted(packages) if f"`avq/{name}/`" not in text] == []


def test_two_hops_lead_to_the_gate_and_to_the_latency_strip() -> None:
    assert "docs/architecture.md" in (ROOT / "README.md").read_text("utf-8")
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path, code in (
        ("avq/builder/answers.py", '"slower than float"'),
        ("avq/web/page/strip.js", "class Strip"),
        ("avq/render/charts.py", "def strip("),
    ):
        assert path in page and code in (ROOT / path).read_text("utf-8")
