"""A file of JSON lines, one per call of an observing hook; $OUTSIDE_JOURNAL is its path."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def note(hook: str, **values: Any) -> None:
    """Append one line; nothing without $OUTSIDE_JOURNAL."""
    where = os.environ.get("OUTSIDE_JOURNAL")
    if where:
        with Path(where).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"hook": hook, **values}) + "\n")
