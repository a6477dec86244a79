"""``pytest --avq-cases cases/``: every folder with a case.toml is a test. Costs nothing without the flag."""

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
    """Cases alone are collected when nothing else was named."""
    folders = _case_folders(config)
    for folder in folders:
        if not folder.exists():
            raise pytest.UsageError(f"--avq-cases: there is no folder {folder}")
    if folders and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the cases: before other plugins choose among the items.

    A case is data. Were its folder an argument of pytest, each conftest.py above it would be imported, those of other
    projects too, whose imports work in their own root folder only.
    """
    for path in _case_files(config):
        nodeid = Path(os.path.relpath(path, config.rootpath)).as_posix()
        items.extend(session.genitems(CaseCollector.from_parent(session, path=path, nodeid=nodeid)))


def _case_folders(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / folder).resolve() for folder in config.getoption("--avq-cases")]


def _case_files(config: pytest.Config) -> list[Path]:
    """Each case.toml once, sorted within the folder that was named."""
    found = [path for folder in _case_folders(config) for path in sorted(_below(folder, config))]
    return list(dict.fromkeys(found))


def _below(folder: Path, config: pytest.Config) -> Iterator[Path]:
    if folder.name == _CASE:
        yield folder
    for here, below, names in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not _ignored(Path(here, name), config)]
        if _CASE in names and not _ignored(Path(here, _CASE), config):
            yield Path(here, _CASE)


def _ignored(path: Path, config: pytest.Config) -> bool:
    """What ``--ignore`` and ``norecursedirs`` leave out."""
    return bool(config.hook.pytest_ignore_collect(collection_path=path, config=config))


class CaseCollector(pytest.File):
    """One case.toml."""

    def collect(self) -> Iterator[pytest.Item]:
        yield CaseItem.from_parent(self, name=self.path.parent.name)


class CaseFailed(Exception):  # noqa: N818  (shown to people as the name of the failure)
    """The replay differs; ``text`` says how, for people."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class CaseItem(pytest.Item):
    """Replays the case."""

    def runtest(self) -> None:
        from avq.progress import Silent
        from avq.replay.case import load_case, run_case

        case = load_case(self.path)
        if case.missing:
            pytest.skip(case.missing)
        outcome = run_case(
            case,
            cache=self._cache(),
            report_folder=Path(self.config.getoption("--avq-report") or _REPORT),
            accept=self.config.getoption("--avq-accept"),
            report=Silent(),
        )
        if not outcome.passed:
            raise CaseFailed(_diff(outcome))

    def _cache(self) -> Path:
        asked = self.config.getoption("--avq-cache")
        kept = getattr(self.config, "cache", None)  # pytest -p no:cacheprovider has none
        return Path(asked) if asked else Path(kept.mkdir("avq-bundles") if kept else _BUNDLES)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The difference, or what avq says is wrong; Python's own view of anything else."""
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
