"""docs/commands.md lists every command and flag; commands and flags in README.md and docs/ exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import avq.replay.pytest_plugin
from avq.cli import cli
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAG = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-z])(?![\w-])")
#: Listed once, at the top of the page.
ALL_TAKE = {"--json", "--help", "-h"}


def leaves(group: click.Group, path: tuple[str, ...] = ("avq",)) -> Iterator[tuple[str, click.Command]]:
    """Yield ("avq log cut", its command) of every command; a group's default command has the group's name."""
    default = getattr(group, "_default", None)
    for name, command in group.commands.items():
        here = path if name == default else (*path, name)
        if isinstance(command, click.Group):
            yield from leaves(command, here)
        else:
            yield " ".join(here), command


COMMANDS = dict(leaves(cli))
FLAGS = {
    name: {flag for option in command.params if isinstance(option, click.Option) and not option.hidden
           for flag in (*option.opts, *option.secondary_opts)}
    for name, command in COMMANDS.items()
}  # fmt: skip


def sections() -> dict[str, str]:
    text = (ROOT / "docs" / "commands.md").read_text()
    parts = re.split(r"^## (avq .*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_every_command_once() -> None:
    assert sorted(sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_every_flag_of_a_command_and_no_other(name: str) -> None:
    rows = re.findall(r"^\| `([^`]*)` \|", sections()[name], flags=re.MULTILINE)
    listed = {flag for row in rows for flag in FLAG.findall(row)}
    assert listed == FLAGS[name] - ALL_TAKE
    assert all(option.help for option in COMMANDS[name].params if isinstance(option, click.Option))


def without_default(text: str) -> str:
    return re.sub(r"\s*\[default: .*\]$", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_the_help_texts_of_the_program(name: str) -> None:
    summary = " ".join((COMMANDS[name].help or "").split())
    assert summary[1:] in " ".join(sections()[name].split())
    rows = dict(re.findall(r"^\| `([^`]*)` \| (.*) \|$", sections()[name], flags=re.MULTILINE))
    texts = {flag: text for flags, text in rows.items() for flag in FLAG.findall(flags)}
    for option in COMMANDS[name].params:
        if isinstance(option, click.Option) and not option.hidden and not ALL_TAKE & set(option.opts):
            assert texts[option.opts[0]].split("; ")[0] == without_default(option.help or "").split("; ")[0]


def snippets(page: Path) -> Iterator[str]:
    """Yield inline code, and the lines of code blocks joined with their continuations."""
    text = page.read_text()
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (line.strip() for line in re.findall(r"^    +\S.*$", text, flags=re.MULTILINE))
    yield from (code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text))


def commands_in(snippet: str) -> Iterator[tuple[str, set[str]]]:
    """Yield (command, flags) of every avq command line in a snippet."""
    for line in re.findall(r"(?:^|[\s;|&/])(?<!from )avq((?: [^|;&#]*)?)", snippet.split("#", maxsplit=1)[0]):
        words = line.split()
        name = "avq"
        while words and any(f"{known} ".startswith(f"{name} {words[0]} ") for known in COMMANDS):
            name = f"{name} {words.pop(0)}"
        if words and re.fullmatch(r"[a-z]+", words[0]) and name not in COMMANDS:
            name = f"{name} {words[0]}"
        if name != "avq":
            yield name, set(FLAG.findall(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_flags_exist(page: Path) -> None:
    for snippet in snippets(page):
        for name, flags in commands_in(snippet):
            known = [command for command in COMMANDS if f"{command} ".startswith(f"{name} ")]
            assert known, f"no command '{name}': {snippet}"
            missing = flags - ALL_TAKE - set().union(*(FLAGS[command] for command in known))
            assert not missing, f"'{name}' has no {missing}: {snippet}"


def test_the_other_pages_show_most_commands() -> None:
    shown = {
        name
        for page in PAGES
        if page.name != "commands.md"
        for s in snippets(page)
        for name, _ in commands_in(s)
    }
    assert len(shown & set(COMMANDS)) >= 18


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_alone_exist_somewhere(page: Path) -> None:
    ours = ALL_TAKE.union(*FLAGS.values())
    ours |= set(FLAG.findall(Path(avq.replay.pytest_plugin.__file__).read_text()))
    for snippet in snippets(page):
        if snippet.startswith("-") and (named := set(FLAG.findall(snippet))):
            assert named <= ours, snippet


SCRIPT = re.compile(r"(?:python3? (?:-m )?)((?:tests|avq)[\w./]*)(.*)")


def test_scripts_that_pages_name_exist_and_know_their_flags() -> None:
    seen = 0
    for snippet in (snippet for page in PAGES for snippet in snippets(page)):
        for name, rest in SCRIPT.findall(snippet):
            path = ROOT / (name if name.endswith(".py") else name.replace(".", "/"))
            files = [path, path.with_suffix(".py"), path / "__main__.py", path / "__init__.py"]
            found = [file for file in files if file.is_file()]
            assert found, f"no {name}: {snippet}"
            text = "".join(file.read_text() for file in found)
            assert all(f'"{flag}"' in text for flag in FLAG.findall(rest.split("#")[0])), snippet
            seen += 1
    assert seen >= 10
