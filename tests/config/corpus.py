"""Invalid configurations: typos, units, impossible budgets, options a source cannot have, and frequent mistakes of
users of other services. ``python -m tests.config.corpus`` checks them all and prints the processor time they took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avq.errors import ConfigError
from avq.plugins import PluginHost
from avq.serve.check import check_config

VALID = """\
bundle = "model.avq"
vehicle = "car-17"
frames = 100
log_level = "info"
allow_unaccepted = false

[budget]
deadline_ms = 66.0
window_frames = 30
max_miss_ratio = 0.1

[[cameras]]
id = "front"
source = "v4l2:///dev/video0?size=1280x720&fps=30"
policy = "newest"
open_timeout_ms = 4000
read_timeout_ms = 500
reconnect = true
max_restarts = 8
window_s = 60

[[cameras]]
id = "rear"
source = "scene://drive?seed=1&fps=10"

[[modes]]
name = "full"
stride = 1

[[modes]]
name = "half"
stride = 2

[drift]
every_n = 60

[[sinks]]
uri = "out.jsonl"

[[sinks]]
uri = "mqtts://car@broker.example/fleet/17"
password_env = "AVQ_MQTT_PASSWORD"
ca_file = "ca.pem"
client_id = "car-17"
spool = "spool"
spool_messages = 1000

[[sinks]]
uri = "zenoh://fleet/17?connect=tcp/10.0.0.2:7447"

[recorder]
path = "front.mcap"
image = "jpeg"
quality = 80
log_on = "miss"
before_s = 5
after_s = 5.5
rotate_mb = 100
rotate_s = 600
keep_mb = 1000

[[alerts]]
name = "person-ahead"
kind = "object"
classes = ["person"]
min_score = 0.5
zone = [[0.3, 0.4], [0.7, 0.4], [0.9, 1.0], [0.1, 1.0]]
anchor = "bottom"
cameras = ["front"]
frames = 6
hits = 3
cooldown_s = 10

[[alerts]]
name = "late"
kind = "budget_miss"

[web]
enabled = true
host = "127.0.0.1"
port = 8787
"""
RECIPE = """\
model = "model.onnx"
output = "model.avq"
data = "pictures"
strategy = "static"
target = "cpu"
budget_ms = 8.0
max_drop = 1.0
gate = true
threads = 1
decoder = "yolov8"

[options]
calibrator = "mse"

[map]
vehicle = ["car", "bus"]
"""


@dataclass(frozen=True)
class Wrong:
    """One edit of a valid file: a line becomes another; the error must name its line and hold ``words``."""

    line: str
    becomes: str
    words: tuple[str, ...]
    text: str = VALID

    def written(self) -> tuple[str, int]:
        """The whole file, and the line (from 1) that is wrong: the last one of the edit that is no table head."""
        assert f"\n{self.line}\n" in f"\n{self.text}", self.line
        before, _, after = f"\n{self.text}".partition(f"\n{self.line}\n")
        new = [line for line in self.becomes.splitlines() if line]
        number = (before + "\n").count("\n") + (len(new) - 1 if len(new) > 1 else 0)
        return f"{before}\n{self.becomes}\n{after}"[1:], number


def typos() -> Iterator[Wrong]:
    """Every key that stands in the files, misspelled in one of three ways."""
    for text in (VALID, RECIPE.partition("[options]")[0]):
        keyed = [line for line in text.splitlines() if " = " in line]
        for number, line in enumerate(keyed):
            key, _, value = line.partition(" = ")
            if text.count(f"\n{line}\n") > 1:
                continue
            ways = (key + "s", key[:-1], key[:-2] + key[-1] + key[-2])
            wrong = ways[number % 3] if len(key) > 4 else ways[0]
            yield Wrong(line, f"{wrong} = {value}", (wrong, "unknown key", f"did you mean '{key}'?"), text)


def units_and_types() -> Iterator[Wrong]:
    """Numbers as text with a unit, negative numbers, numbers where text belongs, fractions where counts belong."""
    for line, unit in (
        ("deadline_ms = 66.0", "66 ms"), ("open_timeout_ms = 4000", "4 s"), ("read_timeout_ms = 500", "500ms"),
        ("window_s = 60", "1 min"), ("quality = 80", "80 %"), ("before_s = 5", "5 s"), ("rotate_mb = 100", "100 MB"),
        ("keep_mb = 1000", "1 GB"), ("min_score = 0.5", "50 %"), ("cooldown_s = 10", "10 s"), ("port = 8787", "8787"),
        ("spool_messages = 1000", "1000"), ("frames = 100", "100"), ("every_n = 60", "60"), ("stride = 2", "2"),
    ):  # fmt: skip
        key = line.partition(" = ")[0]
        yield Wrong(line, f'{key} = "{unit}"', (key, "should be a valid", unit))
        yield Wrong(line, f"{key} = -1", (key, "greater than", "-1"))
    for line in (
        "window_frames = 30", "max_restarts = 8", "open_timeout_ms = 4000", "quality = 80", "frames = 6", "hits = 3",
        "stride = 2", "every_n = 60", "spool_messages = 1000", "port = 8787",
    ):  # fmt: skip
        key = line.partition(" = ")[0]
        yield Wrong(line, f"{key} = 2.5", (key, "valid integer", "2.5"))
    for line in (
        'id = "front"',
        'vehicle = "car-17"',
        'client_id = "car-17"',
        'name = "half"',
        'image = "jpeg"',
    ):
        yield Wrong(line, f"{line.partition(' = ')[0]} = 7", (line.partition(" = ")[0], "7"))
    for line in ("reconnect = true", "enabled = true", "allow_unaccepted = false"):
        yield Wrong(line, f'{line.partition(" = ")[0]} = "yes"', (line.partition(" = ")[0], "valid boolean"))


RUNS = (
    # budgets that cannot be
    ("deadline_ms = 66.0", "deadline_ms = 0.066", "did you mean seconds?", "66"),
    ("deadline_ms = 66.0", "deadline_ms = 66000", "frame periods", "at most 1000"),
    ("deadline_ms = 66.0", "deadline_ms = 0", "greater than 0"),
    ("deadline_ms = 66.0", "deadline_ms = inf", "finite"),
    ("window_s = 60", "window_s = 60\ndeadline_ms = 900", "deadline_ms", "27 frame periods"),
    ("max_miss_ratio = 0.1", "max_miss_ratio = 10", "max_miss_ratio", "less than or equal to 1"),
    ("window_frames = 30", "window_frames = 0", "window_frames", "greater than"),
    ("read_timeout_ms = 500", "read_timeout_ms = 30", "every frame would count as a stall", "three frame periods"),
    # sources and what they cannot have
    ('source = "scene://drive?seed=1&fps=10"', 'source = "scene://drive?sed=1"', "parameter 'sed'", "'seed'"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "scene://drve"', "no scene 'drve'", "drive"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "scene://drive?weather=sunny"', "unknown weather", "valid"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "scene://drive?size=64"', "'size'", "WIDTHxHEIGHT"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "scene://drive?fps=0"', "'fps'", "a number"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "rstp://camera/stream"', "'rstp'", "did you mean 'rtsp'?"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "drive.mpp4"', "'.mpp4'", "did you mean '.mp4'?"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "log.mcap?topik=/a"', "parameter 'topik'", "topic"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = ""', "source", "at least 1 character"),
    ('source = "scene://drive?seed=1&fps=10"', "source = 0", "source", "valid string"),
    (
        'source = "scene://drive?seed=1&fps=10"',
        'source = "v4l2:///dev/video0?size=1280x720&fps=30"', "source of another camera", "another device",
    ),
    (
        'source = "v4l2:///dev/video0?size=1280x720&fps=30"',
        'source = "v4l2:///dev/video0?drop=3"', "parameter 'drop'", "fps, size",
    ),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "drive.mp4"\nreconnect = true', "does not go away"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "pictures"\nmax_restarts = 3', "does not go away"),
    ('source = "scene://drive?seed=1&fps=10"', 'source = "log.mcap"\nwindow_s = 5', "does not go away"),
    ('id = "rear"', 'id = "front"', "share the id front", "another id"),
    ('id = "rear"', 'id = "rear camera"', "pattern", "letters, digits"),
    ('policy = "newest"', 'policy = "newset"', "policy", "did you mean 'newest'?"),
    ('policy = "newest"', 'policy = "drop"', "policy", "auto, every, newest"),
    ("reconnect = true", "reconnect = 1", "reconnect", "valid boolean"),
    ("max_restarts = 8", "drop_frame_interval = 2", "unknown key", "valid:"),
    # modes
    ('name = "half"', 'name = "full"', "share the name full", "another name"),
    ("stride = 2", "stride = 0", "stride", "greater than"),
    # tables and where keys belong
    ('vehicle = "car-17"', "deadline_ms = 50", "unknown key", "belongs in", "[budget]"),
    ("window_frames = 30", "stride = 2", "unknown key", "belongs in [[modes]]"),
    ("max_miss_ratio = 0.1", 'uri = "-"', "unknown key", "belongs in [[sinks]]"),
    ("port = 8787", "read_timeout_ms = 100", "unknown key", "belongs in [[cameras]]"),
    ("[budget]", "[[budget]]", "is a single table: write [budget] once"),
    ("[recorder]", "[[recorder]]", "is a single table: write [recorder] once"),
    ("[drift]", "[dirft]", "unknown key", "did you mean 'drift'?"),
    ("[web]", "[wbe]", "unknown key", "did you mean 'web'?"),
    ("[recorder]", "[recoder]", "unknown key", "did you mean 'recorder'?"),
    ('log_level = "info"', 'log_level = "verbose"', "log_level", "debug, error, info, warning"),
    ('log_level = "info"', 'log_level = "INFO"', "log_level", "info"),
    ("frames = 100", "frames = 0", "frames", "greater than"),
    ('bundle = "model.avq"', "bundle = 1", "bundle", "valid path"),
    ('bundle = "model.avq"', 'ffmpeg = "h264"', "unknown key", "valid:"),
    # sinks
    ('uri = "out.jsonl"', 'uri = "out.jsn"', "no sink writes '.jsn'", "did you mean '.jsonl'?"),
    ('uri = "out.jsonl"', 'uri = "mqqt://h/t"', "no sink writes 'mqqt'", "did you mean 'mqtt'?"),
    ('uri = "out.jsonl"', 'uri = "out"', "names without a suffix", "valid:"),
    ('uri = "out.jsonl"', 'uri = "out.mcap?imag=png"', "parameter 'imag'", "image"),
    ('uri = "out.jsonl"', 'uri = "out.mcap?image=jpg"', "'image' is not valid", "did you mean 'jpeg'?"),
    ('uri = "out.jsonl"', 'uri = "out.mcap?quality=101"', "'quality'", "1..100"),
    ('path = "front.mcap"', 'path = "out.jsonl"', "a sink writes the same file", "another file"),
    ('uri = "out.jsonl"', 'uri = "zenoh://fleet/*"', "without wildcards", "zenoh://fleet/17"),
    ('uri = "out.jsonl"', 'uri = "mqtt://broker"', "a host and a topic", "mqtt://"),
    ('uri = "out.jsonl"', 'uri = "mqtt://broker/a/+/b"', "without wildcards", "mqtt://"),
    ('uri = "out.jsonl"', 'uri = "mqtt://me:pw@broker/t"', "password does not belong", "password_file"),
    ('uri = "out.jsonl"', 'uri = "mqtt://broker:70000/t"', "not an MQTT address", "1883"),
    ('uri = "out.jsonl"', 'uri = "out.jsonl"\nspool = "s"', "only mqtt:// and mqtts:// sinks", "Spool"),
    ('uri = "out.jsonl"', 'uri = "-"\npassword_env = "P"', "only mqtt:// and mqtts:// sinks", "Password"),
    (
        'password_env = "AVQ_MQTT_PASSWORD"',
        'password_file = "p"\npassword_env = "P"', "password_file is set too",
    ),
    ("spool_messages = 1000", "spool_messages = 1", "spool_messages", "greater than or equal to 2"),
    # recorder
    ('image = "jpeg"', 'image = "jpg"', "image", "did you mean 'jpeg'?"),
    ("quality = 80", "quality = 0", "quality", "greater than"),
    ('log_on = "miss"', 'log_on = "misses"', "log_on", "did you mean 'miss'?"),
    ("keep_mb = 1000", "keep_mb = 150", "rotate_mb = 100"),
    # alerts
    ('classes = ["person"]', "classes = []", "classes", "at least 1 item"),
    ('cameras = ["front"]', 'cameras = ["frnt"]', "no camera 'frnt'", "did you mean 'front'?"),
    ("min_score = 0.5", "min_score = 50", "min_score", "less than or equal to 1"),
    ("hits = 3", "hits = 7", "hits = 7 is more than frames = 6"),
    ('name = "late"', 'name = "person-ahead"', "share the name person-ahead", "another name"),
    ('kind = "budget_miss"', 'kind = "late"', "kind", "budget_miss"),
    ('kind = "budget_miss"', 'kind = "budget_miss"\nzone = [0.0, 0.0, 1.0, 1.0]', "uses no detections"),
    ('kind = "budget_miss"', 'kind = "budget_miss"\nclasses = ["car"]', "uses no detections"),
    ('kind = "budget_miss"', 'kind = "camera_dead"\nhits = 2', "counts no frames"),
    ('kind = "budget_miss"', 'kind = "drift"\nframes = 2', "counts no frames"),
    ('anchor = "bottom"', 'anchor = "middle"', "anchor", "bottom, center"),
    # the page
    ("port = 8787", "port = 70000", "port", "less than or equal to 65535"),
)  # fmt: skip
_ZONE = "zone = [[0.3, 0.4], [0.7, 0.4], [0.9, 1.0], [0.1, 1.0]]"
ZONES = (
    ("[[0.3, 0.4], [0.7, 0.4]]", "at least 3 items"),
    ("[[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]", "has no area"),
    ("[100, 200, 300, 400]", "less than or equal to 1"),
    ("[[0.1, 0.2, 0.3], [0.5, 0.5], [0.9, 0.1]]", "at most 2 items"),
    ("[0.1, 0.1, 0.1, 0.9]", "has no area"),
    ('"bottom half"', "valid tuple"),
)
RECIPES = (
    ('strategy = "static"', 'strategy = "statc"', "no strategy 'statc'", "did you mean 'static'?"),
    ('strategy = "static"', 'strategy = "int8"', "no strategy 'int8'", "static"),
    ('target = "cpu"', 'target = "gpu"', "no target 'gpu'", "cpu"),
    ('decoder = "yolov8"', 'decoder = "yolo8"', "no decoder 'yolo8'", "did you mean 'yolov8'?"),
    ('calibrator = "mse"', 'calibratr = "mse"', "no option 'calibratr'", "did you mean 'calibrator'?"),
    ('calibrator = "mse"', 'calibrator = "entropy2"', "calibrator", "entropy"),
    ("budget_ms = 8.0", "budget_ms = 0", "budget_ms", "greater than 0"),
    ("max_drop = 1.0", "max_drop = 120", "max_drop", "less than or equal to 100"),
    ("threads = 1", "threads = 0", "threads", "greater than"),
    ("gate = true", 'gate = "no"', "gate", "valid boolean"),
    ('vehicle = ["car", "bus"]', "vehicle = []", "map.vehicle", "at least 1 item"),
    ('vehicle = ["car", "bus"]', 'vehicle = "car"', "map.vehicle", "valid tuple"),
)


def corpus() -> list[Wrong]:
    """Return every invalid file."""
    return [
        *typos(),
        *units_and_types(),
        *(Wrong(line, becomes, tuple(words)) for line, becomes, *words in RUNS),
        *(Wrong(_ZONE, f"zone = {value}", ("zone", word)) for value, word in ZONES),
        *(Wrong(line, becomes, tuple(words), RECIPE) for line, becomes, *words in RECIPES),
    ]


def refusal(wrong: Wrong, path: Path, host: PluginHost) -> ConfigError | None:
    """Return the error of ``avq config check``; None if it accepts the file."""
    path.write_text(wrong.written()[0])
    try:
        check_config(path, host)
    except ConfigError as error:
        return error
    return None


def faults(wrong: Wrong, error: ConfigError | None, path: Path) -> list[str]:
    """Return what is missing from the error."""
    if error is None:
        return ["it was not refused"]
    message = str(error)
    expected = (f"{path}:{wrong.written()[1]}: ", *wrong.words)
    return [f"'{word}' is not in: {message}" for word in expected if word not in message] + (
        [] if error.fix else ["no fix"]
    )


def main() -> int:
    host = PluginHost()
    host.quantizers()  # plugins are imported once
    spent, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conf.toml"
        for text in (VALID, RECIPE):  # what is imported late
            path.write_text(text)
            check_config(path, host)
        for wrong in corpus():
            start_s = time.process_time()
            error = refusal(wrong, path, host)
            spent.append(time.process_time() - start_s)
            for fault in faults(wrong, error, path):
                bad += 1
                print(f"{wrong.line!r} -> {wrong.becomes!r}: {fault}")
    spent.sort()
    print(f"{len(spent)} wrong files, {bad} complaints; median {spent[len(spent) // 2] * 1e3:.1f} ms, "
          f"longest {spent[-1] * 1e3:.0f} ms")  # fmt: skip
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
