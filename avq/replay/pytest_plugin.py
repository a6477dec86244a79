"""pytest plugin: with ``--avq-cases DIR`` every folder with a case.toml is a test. Does nothing without the flag."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from avq.replay.outcome import Outcome

_CASE = "case.toml"
_REPORT = "avq-report"
_BUNDLES = ".avq-bundles"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("avq", "replay of recorded drives (avq)")
    group.addoption(
        "--avq-cases", action="append", default=[], metavar="DIR", help="run every case.toml below DIR"
    )
    group.addoption(
        "--avq-report", metavar="DIR", help=f"where failing cases leave their report  [default: {_REPORT}]"
    )
    group.addoption(
        "--avq-cache", metavar="DIR", help="bundles built from recipes  [default: pytest's cache]"
    )
    group.addoption(
        "--avq-accept", action="store_true", help="write the references of the cases; refused under CI"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Check the folders; collect only cases when no other arguments are given."""
    folders = _case_folders(config)
    for folder in folders:
        if not folder.exists():
            raise pytest.UsageError(f"--avq-cases: the folder {folder} does not exist")
    if folders and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the cases before other plugins select items.

    The folders are no arguments of pytest: it would import each conftest.py above them, also those of other projects,
    whose imports work in their own root folder only.
    """
    for path in _case_files(config):
        nodeid = Path(os.path.relpath(path, config.rootpath)).as_posix()
        items.extend(session.genitems(CaseCollector.from_parent(session, path=path, nodeid=nodeid)))


def _case_folders(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / folder).resolve() for folder in config.getoption("--avq-cases")]


def _case_files(config: pytest.Config) -> list[Path]:
    """Return each case.toml once, sorted within each folder given."""
    paths = [path for folder in _case_folders(config) for path in sorted(_below(folder, config))]
    unique: dict[Path, Path] = {}
    for path in paths:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def _report_folder(path: Path, config: pytest.Config) -> Path:
    """Return the folder for the report of a case: as deep below --avq-report as the case is below --avq-cases."""
    folder = Path(config.getoption("--avq-report") or _REPORT)
    folders = _case_folders(config)
    number, parent = next(
        ((n, parent) for n, parent in enumerate(folders) if path.is_relative_to(parent)), (0, path.parent)
    )
    if len(folders) > 1:
        folder /= f"{number + 1}-{parent.name}"
    return folder / path.parent.relative_to(parent).parent


def _below(folder: Path, config: pytest.Config) -> Iterator[Path]:
    if folder.name == _CASE:
        yield folder
    visited: set[tuple[int, int]] = set()  # links may lead back
    for here, below, names in os.walk(folder, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in visited:
            below.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if not _ignored(Path(here, name), config)]
        if _CASE in names and not _ignored(Path(here, _CASE), config):
            yield Path(here, _CASE)


def _ignored(path: Path, config: pytest.Config) -> bool:
    """Return whether ``--ignore`` or ``norecursedirs`` exclude a path."""
    return bool(config.hook.pytest_ignore_collect(collection_path=path, config=config))


class CaseCollector(pytest.File):
    """One case.toml."""

    def collect(self) -> Iterator[pytest.Item]:
        yield CaseItem.from_parent(self, name=self.path.parent.name)


class CaseFailed(Exception):  # noqa: N818  (shown to people as the name of the failure)
    """The replay differs; ``text`` describes how."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class CaseItem(pytest.Item):
    """Replay one case."""

    def runtest(self) -> None:
        from avq.progress import Silent
        from avq.replay.case import load_case, run_case

        case = load_case(self.path)
        if case.missing:
            pytest.skip(case.missing)
        outcome = run_case(
            case,
            cache=self._cache(),
            report_folder=_report_folder(self.path, self.config),
            accept=self.config.getoption("--avq-accept"),
            report=Silent(),
        )
        if not outcome.passed:
            raise CaseFailed(_diff(outcome))

    def _cache(self) -> Path:
        folder = self.config.getoption("--avq-cache")
        cache = getattr(self.config, "cache", None)  # pytest -p no:cacheprovider has none
        return Path(folder) if folder else Path(cache.mkdir("avq-bundles") if cache else _BUNDLES)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the difference or the AvqError as text; the traceback of any other error."""
        from avq.errors import AvqError

        error = excinfo.value
        if isinstance(error, CaseFailed):
            return error.text
        return str(error) if isinstance(error, AvqError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"replay {self.name}"


def _diff(outcome: Outcome) -> str:
    from avq.replay.report import markdown

    files = "\n".join(f"{kind}: {path}" for kind, path in outcome.files.items())
    return f"{markdown(outcome, folded=False)}\n{files}"
