"""Every command: parse, one library call, exit code (0 fine, 1 the answer is no, 2 wrong request, 3 not here)."""

from __future__ import annotations

import sys

from avq.cli import build, bundle, evaluate, log, run, system  # noqa: F401  (each registers its commands)
from avq.cli.app import cli


def main() -> None:
    """Entry point of the ``avq`` command."""
    sys.exit(cli.main(standalone_mode=True))


__all__ = ["cli", "main"]
