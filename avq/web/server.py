"""The web server of a run: its socket is bound before anything else starts, its thread ends with the run."""

from __future__ import annotations

import logging
import os
import platform
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from avq import __version__
from avq.config import RunConfig, WebConfig
from avq.daemon.modes import ActiveModes
from avq.errors import MachineError, RequestError
from avq.redaction import redact_uri
from avq.text import utf8
from avq.web.live_state import LiveState, RunInfo

#: How long one thread may keep the interpreter while the loop waits for it; Python's own 5 ms are a frame's delay.
_SWITCH_S = 0.0005
#: Kernel buffers of one viewer, and how long data may stay unacknowledged: so slow ones are noticed.
_SEND_BUFFER_BYTES = 32 * 1024
_UNACKNOWLEDGED_MS = 10_000
_JOIN_S = 3.0
_AGAIN_S = 1.0
#: Loggers whose messages strangers can cause.
_NOISY = ("uvicorn.error", "avq.web.connections")
_log = logging.getLogger("avq.web")


@contextmanager
def open_site(
    host: str, port: int, token: str | None, *, live_state: LiveState | None = None
) -> Iterator[tuple[LiveState, str]]:
    """Serve until the block is left; gives the state to write and the address of the page.

    Args:
        host, port: where to listen; port 0 takes a free one.
        token: that visitors must send; None for no token.
        live_state: to read from, instead of a new one.

    Raises:
        MachineError: the extra ``web`` is not installed.
        RequestError: the address cannot be listened on.
    """
    listener = _listener(host, port)
    live_state = live_state or LiveState()
    with listener:
        server = _Server(live_state, listener, token)
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(min(before_s, _SWITCH_S))
        try:
            yield live_state, _address(listener, host)
        finally:
            server.close()
            sys.setswitchinterval(before_s)


class _Server:
    """uvicorn on a thread of its own; its signal handlers stay away from threads."""

    def __init__(self, live_state: LiveState, listener: socket.socket, token: str | None) -> None:
        try:
            import uvicorn

            from avq.web.app import Endpoints, application
            from avq.web.connections import (
                ACCEPTED_AT_ONCE,
                BoundedServer,
                Connections,
                OncePerMinute,
                bounded,
                socket_limit,
            )
        except ImportError as error:
            raise MachineError(
                "the page needs libraries that are not installed",
                seen=str(error),
                fix='pip install "avq[web]"',
            ) from None
        self._closing = threading.Event()
        self._endpoints = Endpoints(live_state, self._closing.is_set)
        self._listener = listener
        self._config = uvicorn.Config(
            application(self._endpoints, token),
            http=bounded(Connections(socket_limit())),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,  # addresses of requests may hold the token
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=1,
        )
        self._server = BoundedServer(self._config)
        self._filter = OncePerMinute()
        for name in _NOISY:
            logging.getLogger(name).addFilter(self._filter)
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Serve until closed; a server that fails starts again after a second."""
        while not self._closing.is_set():
            try:
                with self._listener.dup() as listener:
                    self._server.run(sockets=[listener])
            except BaseException:
                _log.exception("the web server failed; it starts again in %g s", _AGAIN_S)
            if not self._closing.wait(_AGAIN_S):
                self._server = type(self._server)(self._config)

    def close(self) -> None:
        self._closing.set()
        self._server.should_exit = True
        self._thread.join(_JOIN_S)
        self._endpoints.close()
        for name in _NOISY:
            logging.getLogger(name).removeFilter(self._filter)


def _listener(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> RequestError:
    return RequestError(
        f"the page cannot listen on {host}:{port}",
        seen=error.strerror or str(error),
        fix="end the other program, or choose another port: --web 127.0.0.1:8788, or port 0 for a free one",
    )


def _address(listener: socket.socket, host: str) -> str:
    port = listener.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


OFF = "off"


def web_from_flag(text: str, base: WebConfig) -> WebConfig:
    """``HOST:PORT``, ``PORT``, ``[::1]:PORT`` or ``off`` on top of the configuration.

    Raises:
        RequestError: it is none of them, or the address needs a token that is not configured.
    """
    if text == OFF:
        return base.model_copy(update={"enabled": False})
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else base.host
    if not re.fullmatch(r"[0-9]{1,5}", port) or not host:
        raise RequestError("--web is not HOST:PORT", seen=text, fix="--web 127.0.0.1:8787")
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
def open_page(web: WebConfig, required: bool) -> Iterator[LiveState | None]:
    """Serve the page for the time of a run; gives its state, or None without a page, which is logged.

    Args:
        web: table ``[web]``.
        required: the address was configured; else an address in use only costs the page.

    Raises:
        RequestError: a required address cannot be listened on.
    """
    with ExitStack() as stack:
        live_state = None
        if web.enabled:
            try:
                live_state, address = stack.enter_context(open_site(web.host, web.port, web.token))
                _log.info("page: %s", address)
            except (MachineError, RequestError) as error:
                if required and isinstance(error, RequestError):
                    raise
                _log.warning("no page: %s (%s); %s", error.what, error.seen, error.fix)
        yield live_state


def run_info(config: RunConfig, served: ActiveModes) -> RunInfo:
    """Describe what stays the same until another bundle serves.

    The serving bundle may differ from the configured one: a fallback, or a swapped one.
    """
    parts = served.modes[0].parts
    folder = served.bundle.path if served.bundle is not None else config.bundle
    return {
        "version": __version__,
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "pid": os.getpid(),
        "labels": list(parts.labels),
        "cameras": {camera.id: utf8(redact_uri(camera.source)) for camera in config.cameras},
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
