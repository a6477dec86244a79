"""``avq config check`` against a real bundle, and ``avq run`` with alerts and a recorder out of one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avq.recording import LogReader
from tests.e2e.conftest import run_avq

CONFIG = """
bundle = "{bundle}"
frames = 40
vehicle = "car-17"
allow_unaccepted = true
[web]
enabled = false
[[cameras]]
id = "front"
source = "scene://drive?seed=1&fps=15"
[[alerts]]
name = "car-ahead"
classes = ["{name}"]
min_score = 0.3
zone = [0.0, 0.2, 1.0, 1.0]
hits = 2
frames = 3
cooldown_s = 1
[recorder]
path = "front.mcap"
image = "none"
"""


def test_classes_are_checked_and_alerts_are_in_the_record(
    tmp_path: Path, built: tuple[Path, dict[str, Any]]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(CONFIG.format(bundle=built[0], name="caar"))
    refused = run_avq("config", "check", path)
    assert refused.returncode == 2
    assert f"{path}:13: alerts[0].classes: the bundle has no class 'caar'" in refused.stderr
    assert "did you mean 'car'?" in refused.stderr
    path.write_text(CONFIG.format(bundle=built[0], name="car"))
    done = run_avq("run", path, "--json")
    assert done.returncode == 0, done.stderr
    with LogReader(tmp_path / "front.mcap") as log:
        events = [json.loads(record.data) for record in log if record.topic == "/avq/events"]
    alerts = [event for event in events if event["kind"] == "alert"]
    assert alerts and {alert["label"] for alert in alerts} == {"car"}
    assert {alert["vehicle"] for alert in alerts} == {"car-17"}
    assert len({alert["id"] for alert in alerts}) == len(alerts)
