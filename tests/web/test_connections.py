"""Strangers cannot starve the page: silent connections end, accepted ones are bounded, health is always answered."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from avq.web import connections
from avq.web.connections import MOST_SOCKETS, OncePerMinute, socket_limit
from avq.web.live_state import LiveState
from avq.web.server import open_site
from tests.web.web_kit import ASK


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a page that accepts 24 sockets and waits half a second for a request."""
    monkeypatch.setattr(connections, "MOST_SOCKETS", 24)
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with open_site("127.0.0.1", 0, None) as (_, address):
        yield address


@contextmanager
def connected(address: str, count: int, sends: bytes = b"") -> Iterator[list[socket.socket]]:
    at = urlsplit(address)
    assert at.hostname is not None and at.port is not None
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection((at.hostname, at.port), timeout=10))
            one.sendall(sends)
            held.append(one)
        yield held


def is_closed(one: socket.socket) -> bool:
    one.settimeout(10)
    try:
        return one.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sends", [b"", b"GET /livez HTTP/1.1\r\nHo"], ids=["silent", "half a request"])
def test_connections_without_a_request_do_not_starve_health(site: str, sends: bytes) -> None:
    with connected(site, 100, sends) as held:
        for path in ("/livez", "/readyz", "/metrics", "/livez"):
            began_s = time.monotonic()
            assert ASK.get(site + path).status_code in (200, 503)
            assert time.monotonic() - began_s < 1.0
        assert ASK.get(f"{site}/livez").json()["ok"]
        assert all(is_closed(one) for one in held)  # within the time for a request


def test_a_request_that_drips_is_closed_too(site: str) -> None:
    with connected(site, 1) as (one,):
        began_s = time.monotonic()
        try:
            for byte in b"GET /livez HTTP/1.1\r\n" * 20:
                one.sendall(bytes([byte]))
                time.sleep(0.02)
        except OSError:
            pass
        assert time.monotonic() - began_s < 5 and is_closed(one)


def test_readers_of_events_do_not_starve_health(site: str) -> None:
    request = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(site, 20, request):
        for _ in range(5):
            assert ASK.get(f"{site}/livez").status_code == 200


def test_the_requests_in_progress_are_bounded_but_health_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_REQUESTS", 0)
    with open_site("127.0.0.1", 0, None) as (_, address):
        assert ASK.get(f"{address}/status").status_code == 503
        assert ASK.get(f"{address}/livez").status_code == 200
        assert ASK.get(f"{address}/metrics").status_code == 200


@pytest.mark.parametrize(("descriptors", "sockets"), [(64, 16), (1024, MOST_SOCKETS), (8192, MOST_SOCKETS)])
def test_sockets_leave_descriptors_for_captures_and_recorder(descriptors: int, sockets: int) -> None:
    assert socket_limit(descriptors) == sockets


def test_what_strangers_cause_is_logged_once_a_minute() -> None:
    import logging

    noise = OncePerMinute()
    record = logging.makeLogRecord({"msg": "Invalid HTTP request received."})
    assert [noise.filter(record) for _ in range(3)] == [True, False, False]


def test_a_path_that_is_no_utf8_is_refused(site: str) -> None:
    answer = ASK.post(f"{site}/bundle", content=b'{"bundle":"x/\\ud800"}')
    assert answer.status_code == 400
    assert LiveState().events is not None and ASK.get(f"{site}/status").status_code == 200
