"""``avq config check``: every wrong file is refused with its line, key, reason and a way out; no valid one is."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avq.config import json_schema, load_run
from avq.errors import ConfigError
from avq.plugins import PluginHost
from avq.serve.check import check_config
from tests.config.corpus import RECIPE, VALID, corpus, faults, refusal


@pytest.fixture(scope="module")
def host() -> PluginHost:
    return PluginHost()


def test_every_wrong_file_is_refused_with_line_key_reason_and_fix(tmp_path: Path, host: PluginHost) -> None:
    path = tmp_path / "conf.toml"
    wrong = corpus()
    assert len(wrong) >= 150
    assert [f"{one}: {fault}" for one in wrong for fault in faults(one, refusal(one, path, host), path)] == []


@pytest.mark.parametrize("text", [VALID, RECIPE])
def test_the_files_the_wrong_ones_were_made_of_are_valid(tmp_path: Path, host: PluginHost, text: str) -> None:
    (tmp_path / "conf.toml").write_text(text)
    answer = check_config(tmp_path / "conf.toml", host)
    assert answer["valid"] and answer["kind"] == ("run" if text is VALID else "recipe")


#: Keys whose absence makes another key meaningless, or a table empty of what it needs.
_NEEDED = (
    "bundle",
    "id",
    "source",
    "uri",
    "path",
    "name",
    "kind",
    "classes",
    "log_on",
    "image",
    "rotate_mb",
    "frames",
)


def _without(keep: list[bool]) -> Iterator[str]:
    chosen = iter(keep)
    for line in VALID.splitlines():
        if " = " not in line or line.startswith(_NEEDED) or next(chosen, True):
            yield line


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.booleans(), min_size=50, max_size=50))
def test_keys_that_may_be_left_out_may_be_left_out_in_any_combination(
    tmp_path: Path, host: PluginHost, keep: list[bool]
) -> None:
    path = tmp_path / "conf.toml"
    text = "\n".join(_without(keep))
    # two modes of one bundle must differ
    path.write_text(
        text if "\nstride = 2" in text else text.replace('name = "half"', 'name = "half"\nstride = 3')
    )
    assert check_config(path, host)["valid"]


@st.composite
def values(draw: st.DrawFn) -> str:
    """A valid file with other values than the example's, at the edges too."""
    size = draw(st.sampled_from(["64x64", "1280x720", "8192x4320"]))
    fps = draw(st.integers(1, 120))
    deadline = draw(st.floats(1.0, 10_000 / fps))
    frames = draw(st.integers(1, 10_000))
    shares = st.floats(0, 1)
    zone = [
        draw(st.floats(0, 0.4)),
        draw(st.floats(0, 0.4)),
        draw(st.floats(0.5, 1)),
        draw(st.floats(0.5, 1)),
    ]
    source = draw(st.sampled_from([
        f"scene://drive?size={size}&fps={fps}", f"v4l2:///dev/video3?fps={fps}", "rtsp://u:p@h:554/a?b=c", "a b.mp4",
        "folder", "log.mcap", "log.mcap?topic=/camera/front/image", "http://h/s.mjpg", "file:///data/x.avi",
    ]))  # fmt: skip
    sink = draw(st.sampled_from([
        "-", "a.ndjson", "jsonl:any name", "x.mcap?image=png", "mqtt://h/t", "mqtts://u@h:1/a/b",
        "zenoh://a/b?mode=client&connect=tcp/h:1,udp/h:2&scout=false", "mcap:x?log_on=miss&before_s=2.5",
    ]))  # fmt: skip
    return f"""
bundle = '{draw(st.sampled_from(["m.avq", "/opt/avq/model", "a folder/b"]))}'
budget = {{ deadline_ms = {deadline}, max_miss_ratio = {draw(shares)} }}
[[cameras]]
id = "{draw(st.from_regex("[A-Za-z0-9_-]{1,12}", fullmatch=True))}"
source = "{source}"
open_timeout_ms = {draw(st.integers(1, 10**6))}
[[sinks]]
uri = "{sink}"
[[alerts]]
name = "{draw(st.from_regex("[A-Za-z0-9_.-]{1,12}", fullmatch=True))}"
classes = "{draw(st.sampled_from(["car", "traffic light", "4"]))}"
zone = {zone}
min_score = {draw(shares)}
frames = {frames}
hits = {draw(st.integers(1, frames))}
cooldown_s = {draw(st.floats(0, 86_400))}
"""


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values())
def test_no_valid_file_is_refused(tmp_path: Path, host: PluginHost, text: str) -> None:
    path = tmp_path / "conf.toml"
    path.write_text(text)
    assert check_config(path, host)["valid"]


def test_several_mistakes_are_reported_at_once(tmp_path: Path, host: PluginHost) -> None:
    path = tmp_path / "conf.toml"
    text = (
        VALID.replace("stride = 2", 'stride = "2"')
        .replace("window_frames", "window")
        .replace("quality = 80", "quality = 0")
    )
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_config(path, host)
    lines = [line for line in caught.value.seen.splitlines() if "conf.toml:" in line]
    assert len(lines) == 3 and "window: unknown key" in lines[0]


def test_any_order_of_tables_keeps_lines_right(tmp_path: Path, host: PluginHost) -> None:
    head, *tables = VALID.split("\n[")
    rng = random.Random(8)
    for _ in range(20):
        rng.shuffle(tables)
        text = "\n[".join([head, *tables]).replace("deadline_ms = 66.0", "deadline_ms = -66")
        (tmp_path / "conf.toml").write_text(text)
        line = text[: text.index("deadline_ms = -66")].count("\n") + 1
        with pytest.raises(ConfigError, match=f"conf.toml:{line}: budget.deadline_ms"):
            load_run(tmp_path / "conf.toml")


def test_every_key_of_the_schema_has_a_title_and_a_description() -> None:
    for kind in ("run", "recipe"):
        schema = json_schema(kind)
        for model in (schema, *schema.get("$defs", {}).values()):
            for key, field in model.get("properties", {}).items():
                assert field.get("title") or "$ref" in field, f"{kind}: {key}"
                assert field.get("description"), f"{kind}: {key}"
