"""A file of JSON lines that remembers what the host told; $OUTSIDE_JOURNAL says where."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def note(hook: str, **values: Any) -> None:
    """Append one line; nothing where no journal is wanted."""
    where = os.environ.get("OUTSIDE_JOURNAL")
    if where:
        with Path(where).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"hook": hook, **values}) + "\n")
