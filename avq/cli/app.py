"""Shared parts of all commands: the root group, ``--json``, output, errors and exit codes, name suggestions."""

from __future__ import annotations

import atexit
import functools
import json
import math
import os
import select
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from avq import __version__
from avq.cli.last_resort import as_avq_error, report_thread_failures
from avq.cli.terminal import Terminal, as_table, console, shown
from avq.errors import MachineError, nearest

if TYPE_CHECKING:
    from avq.plugins import PluginHost


Tables = Sequence[tuple[str, Sequence[Mapping[str, object]]]]
#: Type of arguments and options that name files.
PATH = click.Path(path_type=Path)
_WRITE_TIMEOUT_S = 2.0
#: A pipe that polls as writable takes this many bytes without blocking (PIPE_BUF).
_PIPE_BYTES = 4096


def write_line(text: str) -> bool:
    """Write one line to standard output without waiting for a blocked reader.

    Args:
        text: the line, without its newline.

    Returns:
        False if the reader took nothing for two seconds.

    Raises:
        OSError: standard output cannot be written.
    """
    sys.stdout.flush()
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    remaining = memoryview(f"{text}\n".encode())
    while remaining:
        if not poll.poll(_WRITE_TIMEOUT_S * 1000):
            return False
        remaining = remaining[os.write(output, remaining[:_PIPE_BYTES]) :]
    return True


def discard_stdout() -> None:
    """Redirect standard output to /dev/null: Python would otherwise retry the failed write at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_despite(threads: Collection[Thread], code: int) -> None:
    """Exit with ``code`` at shutdown even if one of ``threads`` still runs.

    Such a thread is inside a library call that does not return. If it returned during interpreter shutdown, Python
    would unwind it, and C++ and Rust abort the process then.
    """

    def exit_now() -> None:
        if any(thread.is_alive() for thread in threads):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    if threads:
        atexit.register(exit_now)


class Call:
    """One invocation of one command.

    Attributes:
        json: print one JSON object to standard output instead of tables.
        report: reporter for messages and progress, on standard error.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.json = as_json
        self.report = Terminal(quiet=as_json)

    def host(self) -> PluginHost:
        """Load the installed plugins."""
        from avq.plugins import PluginHost

        return PluginHost()

    def emit(
        self,
        result: Mapping[str, Any],
        tables: Tables = (),
        footer: Sequence[str] = (),
        *,
        ok: bool = True,
        one_line: bool = False,
        always_json: bool = False,
    ) -> int:
        """Print the result of the command.

        Args:
            result: the object of ``--json``; printed as a table where ``tables`` is empty.
            tables: titles and rows to print without ``--json``.
            footer: lines to print below the tables.
            ok: False for a negative result, such as a refused build.
            one_line: print ``--json`` as one line that a blocked reader cannot delay; for services.
            always_json: print JSON without ``--json`` too.

        Returns:
            The exit code: 0, 1 if not ``ok``, 3 if standard output cannot be written.
        """
        try:
            if self.json and one_line:
                self._emit_line(result)
            elif self.json or always_json:
                click.echo(json.dumps(_json_value(result), indent=2))
            else:
                _print_tables(result, tables, footer)
            if sys.stdout is not None:  # None: the caller closed it
                sys.stdout.flush()  # report a full disk here, not at interpreter exit
        except BrokenPipeError:
            raise
        except OSError as error:
            discard_stdout()
            self.report.error(f"cannot write to standard output: {error}")
            return MachineError.exit_code
        return 0 if ok else 1

    def _emit_line(self, result: Mapping[str, Any]) -> None:
        if not write_line(json.dumps(_json_value(result))):
            self.report.error("standard output is blocked; the summary was not written")


def _print_tables(result: Mapping[str, Any], tables: Tables, footer: Sequence[str]) -> None:
    screen = console()
    if not tables:
        tables = [("", [{"": key, " ": _cell_text(value)} for key, value in result.items()])]
    for title, rows in tables:
        screen.print(as_table(title, rows) if rows else Text(shown(f"{title}: none")))
    for text in footer:
        screen.print(shown(text), markup=False, soft_wrap=True)


def _cell_text(value: Any) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_cell_text(item)) for item in value) or "-"
    return f"{value:.4g}" if isinstance(value, float) else value


def _json_value(value: Any) -> Any:
    """Replace what JSON cannot hold: NaN by null, paths by text, NumPy scalars by numbers."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _json_value(value.item())
    return str(value) if isinstance(value, Path) else value


class AvqGroup(click.Group):
    """A group that suggests the nearest command name, and shows no secret of a wrong argument."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = shown(error.message)
            raise

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no command '{args[0]}': {nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=AvqGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="avq")
def cli() -> None:
    """Build and verify INT8 detection engines, and serve them within a latency budget."""


class DefaultCommandGroup(click.Group):
    """A group that runs its default command if the first argument is not a command name."""

    def __init__(self, *args: Any, default: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self._default, *args]
        return super().parse_args(ctx, args)


def command(
    group: click.Group, name: str | None = None, *, hidden: bool = False, service: bool = False
) -> Callable[[Callable[..., int]], click.Command]:
    """Return a decorator that registers a handler as a command.

    A handler takes a Call and its flags, returns the exit code, and may raise AvqError.

    Args:
        group: the group to add the command to.
        name: the command's name; None takes the handler's.
        hidden: leave the command out of the group's help.
        service: exit without waiting for threads that the handler started.
    """

    def register(handler: Callable[..., int]) -> click.Command:
        @functools.wraps(handler)
        def run(as_json: bool, **arguments: Any) -> None:
            call, before = Call(as_json=as_json), threading.enumerate()
            code = _run_reporting_errors(call, lambda: handler(call, **arguments))
            if service:
                exit_despite(set(threading.enumerate()).difference(before), code)
            sys.exit(code)

        with_json = click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
        title = name if name is not None else handler.__name__.replace("_", "-")
        return group.command(name=title, hidden=hidden)(with_json(run))

    return register


def _run_reporting_errors(call: Call, body: Callable[[], int]) -> int:
    """Run ``body``; print an error or an interrupt in words, and return its exit code."""
    report_thread_failures()
    try:
        return body()
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        call.report.error("interrupted; no partial output was left")
        return 130
    except (Exception, SystemExit) as caught:  # a plugin may raise anything
        error = as_avq_error(caught)
    call.report.error(str(error))
    if call.json:
        problem = {"what": error.what, "seen": error.seen, "fix": error.fix}
        click.echo(json.dumps({"error": problem, "exit_code": error.exit_code}))
    return error.exit_code


def model_options(handler: Callable[..., int]) -> Callable[..., int]:
    """Add the flags of commands that read a float model."""
    for option in (
        click.option("--classes", help="file with class names, or coco"),
        click.option("--preprocess", help="preset name, text such as stretch,RGB,0..1, or JSON file"),
        click.option("--decoder", help="detection head family, or none"),
    ):
        handler = option(handler)
    return handler


def ray_option(handler: Callable[..., int]) -> Callable[..., int]:
    """Add ``--ray`` to a command whose work can be distributed."""
    return click.option(
        "--ray", metavar="ADDRESS", help="distribute over a Ray cluster; local starts one on this machine"
    )(handler)
