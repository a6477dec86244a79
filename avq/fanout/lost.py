"""The error of an item whose every worker died."""

from __future__ import annotations

from avq.errors import MachineError

#: How often an item whose worker died is tried again.
RETRIES = 3


class WorkerLostError(MachineError):
    """The workers of one item died, every time it was tried."""

    def __init__(self, item: object, why: str) -> None:
        super().__init__(
            "a worker process died, and so did those that did its work again",
            seen=f"{_short(item)}: {why}",
            fix="was it out of memory? try fewer workers, or without --ray",
        )


def _short(item: object) -> str:
    text = str(item)
    return text if len(text) <= 120 else f"{text[:117]}..."
