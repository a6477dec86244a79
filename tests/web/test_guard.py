"""Who may ask, and what strangers, foreign pages and broken clients get."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from avq.config import WebConfig
from avq.errors import RequestError
from avq.redaction import redact_uri
from avq.web import LiveState, open_page, web_from_flag
from avq.web.server import open_site
from tests.conftest import ROOT
from tests.web.web_kit import ASK, FACTS, HANG_S

TOKEN = "a-token-of-this-test"
PATHS = ("/", "/page/main.js", "/livez", "/readyz", "/metrics", "/status", "/events", "/camera/front.jpg")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    live_state = LiveState()
    live_state.describe(FACTS)
    with open_site("127.0.0.1", 0, None, live_state=live_state) as (_, address):
        yield address


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with open_site("127.0.0.1", 0, TOKEN) as (_, address):
        yield address


def raw(address: str, request: bytes, timeout_s: float = HANG_S) -> bytes:
    """The first part of what the server answers to bytes no client library would send."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
            if b"\r\n\r\n" in answer:
                break
    return answer


@pytest.mark.parametrize("path", PATHS)
def test_a_name_that_was_bent_to_this_machine_is_no_way_in(site: str, path: str) -> None:
    for host in ("evil.example", "evil.example:8787", "127.0.0.1.evil.example", "10.0.0.1", ""):
        assert ASK.get(site + path, headers={"host": host}).status_code == 421, host
    assert ASK.post(site + "/bundle", headers={"host": "evil.example"}, json={}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:80", "[::1]:8787"])
def test_this_machine_is_known_by_all_its_names(site: str, host: str) -> None:
    assert ASK.get(site + "/livez", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a]b", "[x]:1"])
def test_a_host_that_is_no_address_is_refused(site: str, host: str) -> None:
    assert ASK.get(site + "/livez", headers={"host": host}).status_code in (400, 421)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["])
def test_another_site_cannot_swap_a_bundle(site: str, origin: str) -> None:
    answer = ASK.post(site + "/bundle", json={"bundle": "/b"}, headers={"origin": origin})
    assert answer.status_code in (400, 403)
    own = ASK.post(site + "/bundle", json={"bundle": "/b"}, headers={"origin": site})
    assert own.status_code == 501  # asked, and there is no run


@pytest.mark.parametrize("path", PATHS)
def test_a_token_is_asked_for_everywhere(guarded: str, path: str) -> None:
    wrong: tuple[dict[str, str], ...] = (
        {}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "avq_token=x"},
        {"authorization": "Bearer"},
    )  # fmt: skip
    for headers in wrong:
        answer = ASK.get(guarded + path, headers=headers)
        assert answer.status_code == 401 and TOKEN not in answer.text, headers
    assert ASK.get(guarded + path, params={"token": TOKEN[:-1]}).status_code == 401


def test_the_token_opens_by_header_cookie_and_link_and_leaves_the_address_bar(guarded: str) -> None:
    assert ASK.get(guarded + "/livez", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
    assert ASK.get(guarded + "/metrics", params={"token": TOKEN}).status_code == 200
    with httpx.Client(base_url=guarded) as client:
        moved = client.get("/", params={"token": TOKEN})
        assert moved.status_code == 303 and moved.headers["location"] == "/"
        cookie = moved.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/").status_code == 200 and client.get("/page/main.js").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/....//app.py", "/page//etc/passwd",
        "/page/%2fetc%2fpasswd", "/page/main.js%00.html", "/page/", "/../avq/web/app.py", "/camera/../../x.jpg",
        "/camera/%2e%2e%2fapp.jpg", "/page/app.py", "/page/__init__.py",
    ],
)  # fmt: skip
def test_there_is_no_path_out_of_the_page(site: str, path: str) -> None:
    answer = raw(site, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"400"), answer[:80]
    assert b"import" not in answer and b"root:" not in answer


def test_everything_says_what_browsers_may_do_with_it(site: str) -> None:
    for path in ("/", "/page/style.css", "/status", "/metrics", "/page/main.js"):
        headers = ASK.get(site + path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_the_page_asks_nobody_else_and_runs_nothing_inline() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "avq" / "web" / "page").iterdir()}
    assert set(files) >= {"index.html", "style.css", "main.js"}
    for name, text in files.items():
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), name
        assert "innerHTML" not in text and "eval(" not in text, name
    page = files["index.html"]
    assert "style=" not in page and "onclick" not in page and "<style" not in page


def test_huge_and_endless_requests_end(site: str) -> None:
    lie = b"POST /bundle HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 20_000
    assert raw(site, lie).split(b" ")[1] == b"400"
    header = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000 + b"\r\n\r\n"
    with suppress(ConnectionError):  # refused before all of it was taken
        assert raw(site, header).split(b" ")[1] == b"400"
    never = b"POST /bundle HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"
    assert raw(site, never).split(b" ")[1] == b"400"
    assert raw(site, b"\x16\x03\x01 this is not HTTP\r\n\r\n").split(b" ")[1] == b"400"
    assert ASK.get(site + "/livez").status_code == 200


def test_other_machines_need_a_token_and_flags_say_what_is_wrong() -> None:
    assert web_from_flag("127.0.0.1:0", WebConfig()).port == 0
    assert web_from_flag("9000", WebConfig()) == WebConfig(port=9000)
    assert web_from_flag("[::1]:9000", WebConfig()) == WebConfig(host="::1", port=9000)
    assert not web_from_flag("off", WebConfig()).enabled
    assert web_from_flag("0.0.0.0:9000", WebConfig(token=TOKEN)).token == TOKEN
    for text in ("0.0.0.0:9000", "vehicle.local:9000", "192.168.0.7:80"):
        with pytest.raises(RequestError, match="token"):
            web_from_flag(text, WebConfig())
    for text in ("localhost", ":", "localhost:http", "127.0.0.1:70000", ":8787"):
        with pytest.raises(RequestError):
            web_from_flag(text, WebConfig())


def test_a_taken_port_stops_only_a_run_that_asked_for_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        web = WebConfig(port=taken.getsockname()[1])
        with open_page(web, False) as live_state:
            assert live_state is None
        with pytest.raises(RequestError, match="cannot listen"), open_page(web, True):
            pass
    with open_page(WebConfig(enabled=False), True) as live_state:
        assert live_state is None


def test_passwords_of_cameras_are_not_shown() -> None:
    assert redact_uri("rtsp://user:secret@10.0.0.1/a?b=c@d") == "rtsp://***", "c@d may be a password"
    assert redact_uri("rtsp://user:p@ss:w@10.0.0.1/a") == "rtsp://***@10.0.0.1/a"
    assert redact_uri("rtsp://TOKEN@[::1]:554/a@b") == "rtsp://***@b", "so may all before the last @"
    assert redact_uri("rtsp://user:secret@[broken") == "rtsp://***@***"
    assert redact_uri("rtsp://10.0.0.1/a") == "rtsp://10.0.0.1/a"
    assert redact_uri("scene://drive?seed=1") == "scene://drive?seed=1"
    assert redact_uri(str(Path("folder/of/images"))) == "folder/of/images"
