"""Secrets of URIs: whatever the URI looks like, and wherever it ends up, none is shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from avq.errors import DataError, RequestError
from avq.redaction import redact, redact_uri
from avq.text import map_texts, printable

SECRET = "S3CRETpw"
SCHEMES = (
    "rtsp",
    "rtsps",
    "http",
    "https",
    "rtmp",
    "srt",
    "mqtt",
    "mqtts",
    "zenoh",
    "scene",
    "v4l2",
    "udp",
    "ftp",
    "x-y",
)
ODD = st.text(st.sampled_from("@/#?:&=%;,!$'()*+[]~\\\"<>{}|^` .-_aZ9é"), max_size=4)
HOSTS = st.sampled_from(("10.0.0.7", "cam.example", "cam.example:8554", "[fe80::1]:554", "", "a"))
PATHS = st.sampled_from(
    ("", "/", "/live", "/Streaming/Channels/101", "/a/b.mjpg", "/live.sdp?channel=1", "/t?topic=/a/b")
)
KEYS = st.sampled_from(
    ("password", "passwd", "pwd", "pass", "token", "access_token", "api_key", "apikey", "key", "auth", "user",
     "secret", "sig", "anything", "PASSWORD", "loginuse", "loginpas", "p")
)  # fmt: skip


@st.composite
def uris(draw: st.DrawFn) -> str:
    """A URI with the secret somewhere where cameras and brokers take one."""
    scheme, host, path = draw(st.sampled_from(SCHEMES)), draw(HOSTS), draw(PATHS)
    secret = f"{draw(ODD)}{SECRET}{draw(ODD)}"
    key, user = draw(KEYS), draw(st.sampled_from(("admin", "user", "a.b", "", "me@example.org")))
    places = {
        "password": f"{scheme}://{user}:{secret}@{host}{path}",
        "user": f"{scheme}://{secret}@{host}{path}",
        "user with password": f"{scheme}://{secret}:x@{host}{path}",
        "query": f"{scheme}://{host}{path.partition('?')[0]}?{key}={secret}",
        "second of the query": f"{scheme}://{host}{path.partition('?')[0]}?user=admin&{key}={secret}&channel=1",
        "both": f"{scheme}://admin:pw@{host}/x?{key}={secret}",
        "path": f"{scheme}://{host}/user=admin&{key}={secret}&channel=1&stream=0.sdp",
        "path parameter": f"{scheme}://{host}/live;{key}={secret}/a",
        "fragment": f"{scheme}://{host}{path.partition('?')[0]}#{key}={secret}",
        "bare query": f"{scheme}://{host}/x?{secret}",
        "port": f"{scheme}://{user or 'u'}:{SECRET}",
    }
    return places[draw(st.sampled_from(sorted(places)))]


def check(uri: str) -> None:
    assert SECRET not in redact_uri(uri)
    assert SECRET not in redact(f"camera front: '{uri}': no frame; see rtsp://10.0.0.1/b")
    if " " not in uri:  # without quotes, a blank ends a query
        assert SECRET not in redact(f"{uri} does not answer")
        assert SECRET not in str(map_texts({"reason": [uri], "n": 1}, redact))
    assert SECRET not in str(DataError("it does not open", seen=f"got {uri!r}"))
    assert redact(redact(f"x {uri}")) == redact(f"x {uri}")


@settings(max_examples=500, deadline=None)
@given(uris())
@example(f"rtsp://user:x@{SECRET}@h/s")
@example(f"rtsp://user:{SECRET}#x@h")
@example(f"rtsp://user:x/{SECRET}@h")
@example(f"rtsp://user:{SECRET}?x@h")
@example(f"rtsp://user:a://{SECRET}@h")
@example(f"rtsp://user:my {SECRET}@h")
@example(f"http://h/x?password={SECRET}@x")
@example(f"http://h/x?password=x@{SECRET}")
@example(f"mqtt://u:{SECRET}@")
def test_no_uri_shows_its_secret(uri: str) -> None:
    check(uri)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(uris())
def test_no_uri_of_many_shows_its_secret(uri: str) -> None:
    check(uri)


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://***@10.0.0.1:554/live",
        "rtsp://10.0.0.1/Streaming/Channels/101 does not answer with a video stream",
        "scene://drive?seed=1&fps=30&size=640x360",
        "log.mcap?topic=/camera/front/image and out.jsonl",
        "mqtt://user@broker.example:1883/vehicles/17/alerts",
        "password_file = FILE, or password_env = NAME of an environment variable",
        "zenoh://car-17?connect=tcp/127.0.0.1:7447",
        "node /model/conv:0 has no range; mail them",
        "http://127.0.0.1:8787/?",
        "avq run --bundle B --source scene://drive",
        'pip install "avq[mqtt]"',
        "usage: https://example.org/docs/page.html",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        f"admin:{SECRET}@192.168.1.5/live",
        f"there is no file admin:x@{SECRET}@192.168.1.5",
        f"rtsp:/admin:{SECRET}@10.0.0.1/s",
        f"rtsp//admin:{SECRET}@10.0.0.1/s",
        f"password={SECRET}",
        f"login failed: user=admin&password={SECRET}",
        f"rtsp://user:my {SECRET}@h does not answer",
        f"rtsp://{SECRET} @h does not answer",
        f"source=rtsp://u:{SECRET}@h, source=http://h/x?a={SECRET}",
        f"admin:my {SECRET}@192.168.1.5",
        f"http%3A%2F%2Fh%2Fx%3Ftoken%3D{SECRET}",
        f"http://h/x?url=rtsp%3A%2F%2Fadmin%3A{SECRET}%40cam",
        f"https://h/hls/0123456789abcdef{SECRET}/index.m3u8",
    ],
)
def test_what_is_nearly_a_uri_is_redacted_too(text: str) -> None:
    assert SECRET not in redact(text)


def test_names_of_edges_are_no_users_and_passwords() -> None:
    text = "20 grids cannot be written: images@stem.conv:0, stem@head8.block.conv:0"
    assert redact(text) == text


def test_an_error_in_another_process_is_redacted_once() -> None:
    import pickle

    error = RequestError("x", seen=f"rtsp://a:{SECRET}@h/p")
    assert pickle.loads(pickle.dumps(error)).seen == error.seen == "rtsp://***@h/p"


def test_long_texts_take_no_long_time() -> None:
    for text in (
        "a:" * 200_000,
        "@" * 400_000,
        "rtsp://" * 60_000,
        "a:b " * 100_000,
        "x=" * 200_000,
        "://@" * 100_000,
    ):
        redact(text)


def test_control_characters_are_shown_and_line_breaks_stay() -> None:
    assert printable("a\x1b]0;x\x07b\u202ec\r\n\td\x9b") == "a\\x1b]0;x\\x07b\\u202ec\\r\n\td\\x9b"
    assert printable("Größe 中文 😀") == "Größe 中文 😀"
