"""The command line: each handler parses flags, makes one library call and returns an exit code.

Exit codes: 0 success, 1 negative result, 2 invalid request, 3 not possible on this machine.
"""

from __future__ import annotations

import sys

from avq.cli import build, bundle, evaluate, log, run, system  # noqa: F401  (importing registers the commands)
from avq.cli.app import cli


def main() -> None:
    """Entry point of the ``avq`` command."""
    sys.exit(cli.main(standalone_mode=True))


__all__ = ["cli", "main"]
