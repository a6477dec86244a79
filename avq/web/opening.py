"""From a configuration to a page: where it listens, what it says the run is, and what happens without one."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any

from avq.config import RunConfig, WebConfig
from avq.daemon.modes import Served
from avq.errors import MachineError, RequestError
from avq.progress import Reporter
from avq.web.board import Board
from avq.web.site import open_site

OFF = "off"


def web_from_flag(text: str, base: WebConfig) -> WebConfig:
    """``HOST:PORT``, ``PORT``, ``[::1]:PORT`` or ``off`` on top of the configuration.

    Raises RequestError when it is none of them, or when the address asks for a token that is not configured.
    """
    if text == OFF:
        return base.model_copy(update={"enabled": False})
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else base.host
    if not re.fullmatch(r"[0-9]{1,5}", port) or not host:
        raise RequestError("where the page listens is not HOST:PORT", seen=text, fix="--web 127.0.0.1:8787")
    try:
        return WebConfig(host=host, port=int(port), token=base.token)
    except ValueError:
        raise RequestError(
            f"the page cannot listen on {text}",
            seen="a port above 65535"
            if int(port) > 65535
            else "other machines can reach it, and there is no token",
            fix='put token = "..." (16 characters or more) under [web] in the configuration file',
        ) from None


@contextmanager
def open_page(web: WebConfig, wanted: bool, report: Reporter) -> Iterator[Board | None]:
    """A board with its page for the time of a run; None when there is none, and then why was said.

    Args:
        wanted: the address was asked for. Else a port that is taken is no reason not to run.

    Raises RequestError when a wanted address cannot be listened on.
    """
    with ExitStack() as stack:
        board = None
        if web.enabled:
            try:
                board, address = stack.enter_context(open_site(web.host, web.port, web.token))
                report.message(f"page: {address}")
            except (MachineError, RequestError) as error:
                if wanted and isinstance(error, RequestError):
                    raise
                report.warning(f"no page: {error.what} ({error.seen}); {error.fix}")
        yield board


def facts(config: RunConfig, served: Served) -> dict[str, Any]:
    """What does not change while the run lasts, or until another bundle serves.

    What serves need not be what the configuration names: a fallback, or a bundle that was swapped in.
    """
    parts = served.modes[0].parts
    folder = served.bundle.path if served.bundle is not None else config.bundle
    return {
        "version": version("avq"),
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "pid": os.getpid(),
        "labels": list(parts.labels),
        "cameras": {camera.id: without_password(camera.source) for camera in config.cameras},
        "deadlines_ms": {
            camera.id: camera.deadline_ms or config.budget.deadline_ms for camera in config.cameras
        },
        "bundle": {
            "name": folder.name,
            "digest": parts.bundle_digest,
            "engine": parts.session.engine,
            "precision": parts.session.precision,
            "input_px": list(parts.input_size_px),
        },
        "modes": [
            {
                "name": mode.name,
                "digest": mode.parts.bundle_digest,
                "engine": mode.parts.session.engine,
                "precision": mode.parts.session.precision,
                "input_px": list(mode.parts.input_size_px),
                "stride": mode.stride,
            }
            for mode in served.modes
        ],
    }


def without_password(uri: str) -> str:
    """The URI as strangers may read it: ``rtsp://user:secret@host`` -> ``rtsp://***@host``."""
    return re.sub(r"(?<=://)[^/?#@]*@", "***@", uri)
