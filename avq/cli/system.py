"""Commands about the installation: demo, doctor, plugins and config."""

from __future__ import annotations

from pathlib import Path

import click

from avq.cli.app import PATH, AvqGroup, Call, cli, command


@command(cli)
@click.option(
    "-o", "--output", type=PATH, default=Path("avq-demo"), show_default=True, help="folder to write"
)
@click.option("--frames", type=click.IntRange(min=1), default=300, show_default=True, help="frames to serve")
def demo(call: Call, output: Path, frames: int) -> int:
    """Build, evaluate and serve the built-in detector on built-in scenes, and write a report."""
    from avq.demo import run_demo

    result = run_demo(output, frames=frames, report=call.report)
    return call.emit(result.summary(), result.tables(), result.footer())


@command(cli)
def doctor(call: Call) -> int:
    """Show what can be built and run on this machine, and why not."""
    from avq.commands.doctor import examine, rows

    findings = examine()
    return call.emit(findings, [("This machine", rows(findings))])


@command(cli)
def plugins(call: Call) -> int:
    """List installed plugins: version, owner, hooks, contents, options with types and defaults."""
    from avq.plugins import PluginsJson, plugin_tables

    answer: PluginsJson = {"plugins": call.host().listing()}
    return call.emit(answer, plugin_tables(answer["plugins"]))


@cli.group(cls=AvqGroup)
def config() -> None:
    """Check configuration files, or print their JSON schema."""


@command(config)
@click.argument("file", type=PATH)
def check(call: Call, file: Path) -> int:
    """Check a run or recipe file. Errors name file:line and the nearest valid key."""
    from avq.serve.check import check_config

    return call.emit(check_config(file, call.host()))


@command(config)
@click.argument("kind", type=click.Choice(["run", "recipe"]), default="run")
def schema(call: Call, kind: str) -> int:
    """Print the JSON schema of a configuration file."""
    from avq.config import json_schema

    return call.emit(json_schema(kind), always_json=True)
