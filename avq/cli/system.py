"""Getting to know avq: the demo, this machine, plugins, configuration files."""

from __future__ import annotations

from pathlib import Path

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command


@command(cli)
@click.option("-o", "--output", type=PATH, default=Path("avq-demo"), show_default=True, help="where to write")
@click.option("--frames", type=click.IntRange(min=1), default=300, show_default=True, help="frames to serve")
def demo(call: Call, output: Path, frames: int) -> int:
    """The whole story on built-in scenes: build, evaluate, serve, report. No arguments, no network."""
    from avq.demo import run_demo

    result = run_demo(output, frames=frames, report=call.report)
    return call.answer(result.summary(), result.tables(), result.closing())


@command(cli)
def doctor(call: Call) -> int:
    """What can be built and run on this machine, and why not."""
    from avq.commands.doctor import examine, rows

    findings = examine()
    return call.answer(findings, [("What this machine can do", rows(findings))])


@command(cli)
def plugins(call: Call) -> int:
    """Every installed plugin: version, owner, hooks, what it brings, options with types and defaults."""
    from avq.plugins import plugin_tables

    listing = call.host().listing()
    return call.answer({"plugins": listing}, plugin_tables(listing))


@cli.group(cls=AvqGroup)
def config() -> None:
    """Check configuration files, or print their schema."""


@command(config)
@click.argument("file", type=PATH)
def check(call: Call, file: Path) -> int:
    """Check a run or recipe file; errors name file:line and the nearest valid key."""
    from avq.serve.check import check_config

    return call.answer(check_config(file, call.host()))


@command(config)
@click.argument("kind", type=click.Choice(["run", "recipe"]), default="run")
def schema(call: Call, kind: str) -> int:
    """The JSON schema of a configuration file."""
    from avq.config import json_schema

    return call.answer(json_schema(kind), always_json=True)
