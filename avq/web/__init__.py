"""The page of a run, its health and its metrics: read from a board the loop writes, served by a thread of its own."""

from __future__ import annotations

from avq.web.board import Board
from avq.web.server import facts, open_page, web_from_flag

__all__ = ["Board", "facts", "open_page", "web_from_flag"]
