"""What all commands share: their root, --json, one answer, errors with exit codes, nearest names."""

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

from avq import __version__
from avq.cli.terminal import Terminal, as_table, console
from avq.errors import AvqError, MachineError, nearest

if TYPE_CHECKING:
    from avq.plugins import PluginHost


# The end of a service: neither a reader that does not read nor a thread that does not end may hold it
# up.

_PATIENCE_S = 2.0
#: What a pipe takes without waiting when it says that it has room.
_ROOM_BYTES = 4096


def told(text: str) -> bool:
    """Write a line to standard output; False when the reader has taken nothing for two seconds.

    Raises OSError, as print does.
    """
    sys.stdout.flush()
    output = sys.stdout.fileno()
    ready = select.poll()
    ready.register(output, select.POLLOUT)
    left = memoryview(f"{text}\n".encode())
    while left:
        if not ready.poll(_PATIENCE_S * 1000):
            return False
        left = left[os.write(output, left[:_ROOM_BYTES]) :]
    return True


def drop_output() -> None:
    """Send what still waits for standard output nowhere: Python would try it again when it ends, and fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_without(threads: Collection[Thread], code: int) -> None:
    """When the process ends, end it at once with ``code`` if one of these threads is still there.

    It is inside a library that does not come back. If it did while Python goes down, Python would unwind it, and C++
    and Rust answer that by aborting the process.
    """

    def leave() -> None:
        if any(thread.is_alive() for thread in threads):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    if threads:
        atexit.register(leave)


Tables = Sequence[tuple[str, Sequence[Mapping[str, object]]]]
#: The type of arguments and options that name files.
PATH = click.Path(path_type=Path)


class Call:
    """One run of one command.

    Attributes:
        json: machines are reading: one object on standard output.
        report: where progress goes (standard error).
    """

    def __init__(self, *, as_json: bool) -> None:
        self.json = as_json
        self.report = Terminal(quiet=as_json)

    def host(self) -> PluginHost:
        from avq.plugins import PluginHost

        return PluginHost()

    def answer(
        self,
        answer: Mapping[str, Any],
        tables: Tables = (),
        closing: Sequence[str] = (),
        *,
        yes: bool = True,
        line: bool = False,
        always_json: bool = False,
    ) -> int:
        """Print the answer for whoever reads, and return the exit code.

        Args:
            line: of a service: one line, which a reader that hangs does not hold up.
        """
        try:
            self._write(answer, tables, closing, line=line, always_json=always_json)
            if sys.stdout is not None:  # None: whoever started this closed it
                sys.stdout.flush()  # a short answer meets a full disk here, not when Python has gone
        except BrokenPipeError:
            raise
        except OSError as error:
            drop_output()
            self.report.error(f"standard output cannot be written: {error}")
            return MachineError.exit_code
        return 0 if yes else 1

    def _write(
        self,
        answer: Mapping[str, Any],
        tables: Tables,
        closing: Sequence[str],
        *,
        line: bool,
        always_json: bool,
    ) -> None:
        if self.json and line:
            if not told(json.dumps(_plain(answer))):
                self.report.error("nobody reads standard output: the summary was not written")
        elif self.json or always_json:
            click.echo(json.dumps(_plain(answer), indent=2))
        else:
            _print(answer, tables, closing)


def _print(answer: Mapping[str, Any], tables: Tables, closing: Sequence[str]) -> None:
    screen = console()
    if not tables:
        tables = [("", [{"": key, " ": _short(value)} for key, value in answer.items()])]
    for title, rows in tables:
        screen.print(as_table(title, rows) if rows else f"{title}: none")
    for text in closing:
        screen.print(text, markup=False, soft_wrap=True)


def _short(value: Any) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(_short(item)) for item in value) or "-"
    return f"{value:.4g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """JSON has no NaN and no paths."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return _plain(value.item())
    return str(value) if isinstance(value, Path) else value


class AvqGroup(click.Group):
    """A group that names the nearest command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no command '{args[0]}': {nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


@click.group(cls=AvqGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="avq")
def cli() -> None:
    """Build INT8 detection engines that are measured, serve them inside a latency budget, and say why."""


class DefaultCommandGroup(click.Group):
    """A group whose first argument may be a file: then the default command takes it."""

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
    """Register a handler: it gets a Call, returns the exit code, and may raise AvqError.

    Args:
        service: its end waits for no thread that it started.
    """

    def register(handler: Callable[..., int]) -> click.Command:
        @functools.wraps(handler)
        def run(as_json: bool, **arguments: Any) -> None:
            call, before = Call(as_json=as_json), threading.enumerate()
            code = _guarded(call, lambda: handler(call, **arguments))
            if service:
                end_without(set(threading.enumerate()).difference(before), code)
            sys.exit(code)

        with_json = click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
        title = name if name is not None else handler.__name__.replace("_", "-")
        return group.command(name=title, hidden=hidden)(with_json(run))

    return register


def _guarded(call: Call, body: Callable[[], int]) -> int:
    try:
        return body()
    except AvqError as error:
        call.report.error(str(error))
        if call.json:
            problem = {"what": error.what, "seen": error.seen, "fix": error.fix}
            click.echo(json.dumps({"error": problem, "exit_code": error.exit_code}))
        return error.exit_code
    except KeyboardInterrupt:
        call.report.error("interrupted; nothing half-written was left behind")
        return 130


def model_options(handler: Callable[..., int]) -> Callable[..., int]:
    """Flags of every command that reads a float model."""
    for option in (
        click.option("--classes", help="class-name file, or coco"),
        click.option("--preprocess", help="preset name or JSON file"),
        click.option("--decoder", help="head family, or none"),
    ):
        handler = option(handler)
    return handler


def ray_option(handler: Callable[..., int]) -> Callable[..., int]:
    """``--ray``, of every command whose work can be spread."""
    return click.option(
        "--ray", metavar="ADDRESS", help="spread over a Ray cluster; local starts one on this machine"
    )(handler)
