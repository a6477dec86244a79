"""The web page, health checks and metrics of a run."""

from __future__ import annotations

from avq.web.live_state import LiveState
from avq.web.server import open_page, run_info, web_from_flag

__all__ = ["LiveState", "run_info", "open_page", "web_from_flag"]
