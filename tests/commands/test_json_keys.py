"""Objects and lines of ``--json`` have the keys that scripts rely on: keys may be added, not renamed or removed."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest

from avq.builder.calibrate.run import ThresholdsJson
from avq.builder.calibrate.sharding import CalibrateJson
from avq.builder.outcome import BuildJson
from avq.commands.bench import BenchJson
from avq.commands.doctor import DoctorJson
from avq.commands.evaluate import EvalJson
from avq.commands.inspect import InspectJson
from avq.commands.lint import LintJson
from avq.daemon.metrics import RunAnswer
from avq.replay.batch import BatchJson
from avq.replay.mining import MiningJson
from avq.replay.outcome import ReplayJson
from avq.types.frame import MessageJson

#: Command -> the type of its object, and the keys of the contract; nested keys of one row or object below.
CONTRACT: dict[str, tuple[Any, str]] = {
    "calibrate": (CalibrateJson, "images tensors seconds peak_rss_mb digest inferences"),
    "calibrate thresholds": (ThresholdsJson, "tensors seconds inferences"),
    "build": (
        BuildJson,
        "bundle strategy target engine accepted metric reasons float chosen int8_mac_share seconds",
    ),
    "eval": (EvalJson, "images map ap50 per_class mean_confidence reference"),
    "bench": (BenchJson, "entries ratios"),
    "run": (RunAnswer, "captured published dropped in_flight misses p50_ms p99_ms max_ms modes"),
    "replay": (ReplayJson, "frames identical differences sha256 seconds"),
    "replay of several logs": (BatchJson, "frames identical differences sha256 seconds"),
    "replay --mine": (MiningJson, "frames identical differences sha256 seconds"),
    "doctor": (DoctorJson, "engines gpus plugins"),
    "inspect": (InspectJson, "kind digest accepted inputs outputs preprocess plan parts"),
    "lint": (LintJson, "findings"),
    "line of a published frame": (
        MessageJson,
        "camera seq t_capture_ns age_ms late mode bundle detections",
    ),
}
NESTED: dict[str, tuple[Any, str, str]] = {
    "build float": (BuildJson, "float", "map p50_ms"),
    "build chosen": (BuildJson, "chosen", "map p50_ms lost confidence_shift"),
    "eval reference": (EvalJson, "reference", "map ap50 lost confidence_shift"),
    "bench entries": (BenchJson, "entries", "bundle engine precision threads p50_ms p99_ms"),
    "bench ratios": (BenchJson, "ratios", "a b median low high"),
    "replay differences": (ReplayJson, "differences", "frame camera field"),
    "differences of several logs": (BatchJson, "differences", "frame camera field"),
    "doctor engines": (DoctorJson, "engines", "name available version can_build can_run why"),
    "lint findings": (LintJson, "findings", "id severity node what seen fix"),
    "boxes of a line": (MessageJson, "detections", "label score box_xyxy_px"),
}


def keys_of(typed_dict: Any) -> set[str]:
    return set(typed_dict.__annotations__)


@pytest.mark.parametrize("command", CONTRACT)
def test_an_object_has_the_keys_of_the_contract(command: str) -> None:
    typed_dict, keys = CONTRACT[command]
    assert set(keys.split()) <= keys_of(typed_dict)


@pytest.mark.parametrize("name", NESTED)
def test_a_nested_object_has_the_keys_of_the_contract(name: str) -> None:
    typed_dict, key, keys = NESTED[name]
    nested = get_type_hints(typed_dict)[key]
    rows = get_args(nested)
    assert set(keys.split()) <= keys_of(rows[0] if rows else nested)
