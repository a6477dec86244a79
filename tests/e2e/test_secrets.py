"""Nothing that leaves the process holds a secret of a URI: streams, files, page, and refusals of configurations."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from avq.cli import cli
from tests.ports import free_port
from tests.replay.bundle_kit import write_real_bundle

SECRET = "S3CRETpw"
CAMERAS = (
    f"rtsp://user:{SECRET}@127.0.0.1:1/s",
    f"rtsp://user:x@{SECRET}@127.0.0.1:1/s",
    f"rtsp://user:{SECRET}#x@127.0.0.1:1/s",
    f"rtsp://user:x/{SECRET}@127.0.0.1:1/s",
    f"rtsp://user:{SECRET}?x@127.0.0.1:1/s",
    f"rtsp://{SECRET}@127.0.0.1:1/s",
    f"rtsp://127.0.0.1:1/s?user=admin&password={SECRET}",
    f"rtsp://127.0.0.1:1/user=admin&password={SECRET}&channel=1&stream=0.sdp",
    f"http://127.0.0.1:1/video.mjpg?token={SECRET}",
    f"http://127.0.0.1:1/video.mjpg?x=y@{SECRET}",
)
HEAD = 'bundle = "B"\nframes = 2\n[[cameras]]\nid = "c"\nsource = "scene://drive?frames=3"\n'
REFUSED = (
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "rtspx://user:{SECRET}@h/s"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "v4l2://user:{SECRET}@/dev/video0"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "rtsp://user:{SECRET}@127.0.0.1:99999/s"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "rtsp://user:{SECRET}@[::1/s"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "scene://user:{SECRET}@drive?x=1"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "admin:{SECRET}@10.0.0.1/live"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "rtsp:/admin:{SECRET}@10.0.0.1/live"\n',
    f'bundle = "B"\n[[cameras]]\nid = "c"\nsource = "rtsp://a:{SECRET}@h/s"\nread_timeout_ms = "rtsp://a:{SECRET}@h"\n',
    *(
        f'{HEAD}[[sinks]]\nuri = "{uri}"\n{more}'
        for uri, more in (
            (f"mqtt://u:{SECRET}@127.0.0.1:1/t?bad=1", ""),
            (f"mqttx://u:{SECRET}@h/t", ""),
            (f"mqtt://u:{SECRET}@127.0.0.1:1", ""),
            (f"mqtt://u:{SECRET}@127.0.0.1:99999/t", ""),
            (f"mqtt://u:x/{SECRET}@h/t", ""),
            (f"mqtt://u:{SECRET}@/t", 'password_env = "X"\n'),
            (f"zenoh://u:{SECRET}@k", 'client_id = "q"\n'),
            (f"zenoh://k?connect=tcp/u:{SECRET}@h:1&no=1", ""),
            (f"mqtt://u:{SECRET}@h/t", 'password_file = "nope"\n'),
        )
    ),
    f'{HEAD}[web]\nhost = "0.0.0.0"\ntoken = "{SECRET}"\n',
    f'{HEAD}[web]\nport = 1\ntoken = "{SECRET} with a blank, and long enough"\n',
)


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_no_refusal_of_a_configuration_shows_a_secret(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    checked = CliRunner().invoke(cli, ["config", "check", str(tmp_path / "run.toml")])
    served = CliRunner().invoke(cli, ["run", str(tmp_path / "run.toml"), "--json"])
    assert served.exit_code != 0
    assert SECRET not in checked.output + served.output


def test_no_wrong_argument_is_repeated_with_its_secret() -> None:
    for words in (
        ["run", f"rtsp://a:{SECRET}@h/s", "x"],
        ["run", f"--sourc=rtsp://a:{SECRET}@h/s"],
        ["replay", f"rtsp://a:{SECRET}@h/s"],
    ):
        assert SECRET not in CliRunner().invoke(cli, words).output


@pytest.mark.slow
def test_a_run_whose_cameras_do_not_answer_shows_no_secret(tmp_path: Path) -> None:
    write_real_bundle(tmp_path / "B")
    port = free_port()
    text = f'bundle = "B"\nlog_level = "debug"\n[web]\nport = {port}\n[recorder]\npath = "r.mcap"\n'
    text += '[[sinks]]\nuri = "o.jsonl"\n'
    text += '[[sinks]]\nuri = "mqtt://user@127.0.0.1:1/t"\npassword_file = "pw"\nspool = "spool"\n'
    text += '[[alerts]]\nname = "d"\nkind = "camera_dead"\n[[cameras]]\nid = "ok"\nsource = "scene://drive?fps=10"\n'
    for index, uri in enumerate(CAMERAS):
        text += (
            f'[[cameras]]\nid = "c{index}"\nsource = "{uri}"\nopen_timeout_ms = 500\nread_timeout_ms = 500\n'
        )
        text += "max_restarts = 1\nwindow_s = 60\n"
    (tmp_path / "pw").write_text(SECRET)
    (tmp_path / "run.toml").write_text(text)
    command = [sys.executable, "-c", "from avq.cli import main; main()", "run", "run.toml", "--json"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    left: dict[str, str] = {}
    deadline_s, seen = time.monotonic() + 60, 0
    while time.monotonic() < deadline_s and seen < 2 * len(CAMERAS):
        time.sleep(1)
        with suppress(OSError):
            for path in ("/status", "/metrics"):
                left[path] = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}").read().decode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/events") as stream:
                left["/events"] = stream.read(20_000).decode(errors="replace")
            seen = len(json.loads(left["/status"])["events"])
    process.terminate()
    output, errors = process.communicate(timeout=60)
    left |= {"stdout": output.decode(), "stderr": errors.decode()}
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.name not in ("pw", "run.toml"):
            left[str(file)] = file.read_bytes().decode("latin-1")
    assert "camera c9" in left["stderr"] and '"failures"' in left["stdout"]
    assert {name for name, content in left.items() if SECRET in content} == set()
