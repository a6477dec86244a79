"""Configuration files: read, checked, and wrong ones explained by file, line and nearest key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from avq.config import (
    Budget,
    Camera,
    RecipeFile,
    RunConfig,
    SinkConfig,
    check_file,
    json_schema,
    load_run,
    recipe_from,
)
from avq.config.line_numbers import key_lines
from avq.errors import ConfigError, RequestError

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
RUN = """
bundle = "b"
[budget]
deadline_ms = 50

[[cameras]]
id = "front"
source = "scene://drive"
[[cameras]]
id = "rear"
source = "drive.mp4"
policy = "every"

[[sinks]]
uri = "out.jsonl"
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "conf.toml"
    file.write_text(text)
    return file


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(write(tmp_path, text))
    return str(caught.value)


def test_a_run_is_read_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    config = load_run(write(tmp_path, RUN))
    assert config.bundle == tmp_path / "b"
    assert [(c.id, c.policy) for c in config.cameras] == [("front", "auto"), ("rear", "every")]
    assert config.cameras[0].source == "scene://drive"
    assert config.cameras[1].source == str(tmp_path / "drive.mp4")
    assert config.sinks[0].uri == str(tmp_path / "out.jsonl")
    assert config.budget.latency_budget().deadline_ns == 50_000_000


LADDER = (
    RUN
    + """
[[modes]]
name = "best"
[[modes]]
name = "small"
bundle = "small.avq"
[[modes]]
name = "half-rate"
bundle = "small.avq"
stride = 2
[shadow]
bundle = "next.avq"
[drift]
"""
)


def test_a_ladder_a_shadow_and_drift_are_read_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    config = load_run(write(tmp_path, LADDER))
    assert [(mode.name, mode.bundle, mode.stride) for mode in config.modes] == [
        ("best", None, 1),
        ("small", tmp_path / "small.avq", 1),
        ("half-rate", tmp_path / "small.avq", 2),
    ]
    assert config.shadow is not None and config.shadow.bundle == tmp_path / "next.avq"
    assert config.drift is not None and config.drift.every_n == 60


@pytest.mark.parametrize(
    ("wrong", "right", "expected"),
    [
        ('name = "best"', 'name = "small"', "modes share the name small"),
        ("stride = 2", "stride = 1", "small and half-rate are the same bundle at the same stride"),
        ("stride = 2", "stride = 0", ": modes[2].stride: input should be greater than or equal to 1"),
        ("stride = 2", "strid = 2", ": modes[2].strid: unknown key"),
        ("stride = 2", 'stride = "2"', "modes[2].stride"),
        ('name = "best"', 'name = "a b"', ": modes[0].name: "),
        ('name = "best"', "", ": modes[0].name: is required"),
        ('"next.avq"', '"b"', "shadow.bundle: the shadow bundle is the serving bundle"),
        ("[drift]", "[drift]\nevery_n = 0", ": drift.every_n: input should be greater than or equal to 1"),
        ("[drift]", "[drift]\nevery = 3", ": drift.every: unknown key"),
    ],
)
def test_wrong_ladders_shadows_and_drifts_are_explained(
    tmp_path: Path, wrong: str, right: str, expected: str
) -> None:
    assert wrong in LADDER
    assert expected in refused(tmp_path, LADDER.replace(wrong, right))


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("**/*.toml")), ids=lambda p: p.name)
def test_the_example_files_are_valid(file: Path) -> None:
    assert check_file(file) == ("recipe" if file.parent.name == "recipes" else "run")


def test_there_are_examples_of_both_kinds() -> None:
    assert list(LAUNCH.glob("*.toml")) and list(LAUNCH.glob("recipes/*.toml"))


@pytest.mark.parametrize(
    ("wrong", "right", "expected"),
    [
        ("policy", "polcy", ["conf.toml:12: cameras[1].polcy: unknown key", "did you mean 'policy'?"]),
        ("deadline_ms = 50", "deadline_ms = -1", ["conf.toml:4: budget.deadline_ms", "greater than 0"]),
        ("deadline_ms = 50", 'deadline_ms = "50"', ["conf.toml:4", "valid number", "'50'"]),
        ("deadline_ms = 50", "deadline_ms = nan", ["conf.toml:4", "finite"]),
        ('"rear"', '"front"', ["share the id front"]),
        ('id = "rear"', "", ["conf.toml:9: cameras[1].id: is required"]),
        ('"every"', '"evry"', ["conf.toml:12", "did you mean 'every'?"]),
        ('"scene://drive"', '""', ["conf.toml:8: cameras[0].source"]),
        ('bundle = "b"', "", ["bundle: is required", "bundle folder to serve"]),
        ('bundle = "b"', 'bundle = "b"\nframes = 0', ["conf.toml:3: frames"]),
        ('bundle = "b"', 'bundle = "b"\nallow_unaccepted = "no"', ["conf.toml:3: allow_unaccepted"]),
        ("[budget]", "[buget]", ["conf.toml:3: buget: unknown key", "did you mean 'budget'?"]),
        ("[budget]", "[budget", ["conf.toml:3", "not valid TOML"]),
        ('id = "front"', 'id = "fr/ont"', ["conf.toml:7: cameras[0].id"]),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, wrong: str, right: str, expected: list[str]) -> None:
    assert wrong in RUN
    text = refused(tmp_path, RUN.replace(wrong, right))
    for part in expected:
        assert part in text


def test_a_run_without_cameras_is_refused(tmp_path: Path) -> None:
    assert "cameras: is required" in refused(tmp_path, 'bundle = "b"')
    assert "at least 1 item" in refused(tmp_path, 'bundle = "b"\ncameras = []')


def test_files_that_are_no_text_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_run(tmp_path / "none.toml")
    (tmp_path / "conf.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_run(tmp_path / "conf.toml")


def flags(**changes: Any) -> dict[str, Any]:
    """What ``avq build`` passes when no flag is given."""
    none = {name for name in RecipeFile.model_fields if name not in ("gate", "options", "map")}
    return dict.fromkeys(none) | {"options": (), "maps": (), "no_gate": False} | changes


def test_flags_alone_make_a_recipe() -> None:
    recipe = recipe_from(
        None,
        flags(
            model=Path("m.onnx"),
            output=Path("b"),
            options=("calibrator=mse", "bits=6"),
            maps=("vehicle=car,bus",),
            gpu_arch="sm87, sm89",
            no_gate=True,
            threads=2,
        ),
    )
    assert (recipe.model, recipe.output, recipe.strategy, recipe.gate) == (
        Path("m.onnx"),
        Path("b"),
        "static",
        False,
    )
    assert recipe.options == {"calibrator": "mse", "bits": "6"}
    assert recipe.class_map == {"vehicle": ("car", "bus")}
    assert recipe.gpu_arch == ("sm87", "sm89") and recipe.threads == 2


def test_the_gate_may_leave_out_the_time(tmp_path: Path) -> None:
    given = {"model": Path("m.onnx"), "output": Path("b")}
    assert recipe_from(None, flags(**given)).judge_time
    recipe = recipe_from(None, flags(**given, gate="accuracy", force=True))
    assert recipe.gate and not recipe.judge_time and recipe.force
    written = write(tmp_path, 'model = "m.onnx"\noutput = "b"\ngate = "accuracy"\n')
    assert not recipe_from(written, flags()).judge_time
    assert recipe_from(written, flags(gate="full")).judge_time
    with pytest.raises(ConfigError, match="gate"):
        recipe_from(write(tmp_path, 'model = "m.onnx"\noutput = "b"\ngate = "speed"\n'), flags())


def test_flags_win_over_the_file_and_tables_merge(tmp_path: Path) -> None:
    text = (
        'model = "m.onnx"\noutput = "b"\nstrategy = "mixed"\ngate = false\n'
        "[options]\nbits = 7\nsearch = true\n[map]\nperson = ['person']\n"
    )
    recipe = recipe_from(
        write(tmp_path, text), flags(strategy="static", options=("bits=6",), maps=("vehicle=car",))
    )
    assert recipe.model == tmp_path / "m.onnx", "paths in a file are relative to its folder"
    assert (recipe.strategy, recipe.gate) == ("static", False)
    assert recipe.options == {"bits": "6", "search": "true"}
    assert recipe.option_folders == {"search": tmp_path}, "bits came from the command line"
    assert recipe.class_map == {"person": ("person",), "vehicle": ("car",)}


def test_a_preprocessing_or_class_file_is_next_to_the_recipe_and_a_known_name_stays(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("car\n")
    (tmp_path / "yolox").mkdir()
    file = write(tmp_path, 'model = "m"\noutput = "b"\npreprocess = "yolox"\nclasses = "names.txt"\n')
    recipe = recipe_from(file, flags())
    assert (recipe.preprocess, recipe.classes) == ("yolox", str(tmp_path / "names.txt"))
    assert recipe_from(file, flags(classes="names.txt")).classes == "names.txt", (
        "a flag stays as it was typed"
    )


def test_wrong_flags_and_wrong_files_have_different_errors(tmp_path: Path) -> None:
    base = {"model": Path("m.onnx"), "output": Path("b")}
    with pytest.raises(RequestError, match="threads") as caught:
        recipe_from(None, flags(**base, threads=0))
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(ConfigError, match=r"conf.toml:1: threads"):
        recipe_from(write(tmp_path, "threads = 0"), flags(**base))
    with pytest.raises(ConfigError, match=r"conf.toml:2: max_drops: unknown key(.|\n)*'max_drop'"):
        recipe_from(write(tmp_path, "\nmax_drops = 1"), flags(**base))
    with pytest.raises(RequestError, match=r"model: is required(.|\n)*avq build MODEL"):
        recipe_from(None, flags(output=Path("b")))
    with pytest.raises(RequestError, match="key=value"):
        recipe_from(None, flags(**base, options=("bits",)))
    with pytest.raises(RequestError, match="category=class"):
        recipe_from(None, flags(**base, maps=("vehicle",)))


@pytest.mark.parametrize("model", [RecipeFile, RunConfig, Camera, Budget, SinkConfig])
def test_every_field_has_a_title_and_a_description(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.title and field.description, name


def test_the_schema_is_plain_json() -> None:
    assert "deadline_ms" in json.dumps(json_schema("run"))
    assert json_schema("recipe")["additionalProperties"] is False
    with pytest.raises(RequestError, match="did you mean 'recipe'"):
        json_schema("recipes")


def test_lines_are_found_behind_long_strings_lists_and_quotes() -> None:
    text = '''# = comment
a = """
b = 1
[not.a.table]
"""
"quoted key" = [ "]", # ]
  { c = "}" },
]
x.y.z = 3
[one.'two']  # [three]
d = 'it''s' # nonsense to TOML, harmless here
[[many]]
[[many]]
[many.inner]
e = 1
'''
    lines = key_lines(text)
    assert lines[("a",)] == 2 and ("b",) not in lines
    assert lines[("quoted key",)] == 6 and lines[("x", "y", "z")] == 9
    assert lines[("one", "two", "d")] == 11
    assert lines[("many", 0)] == 12 and lines[("many", 1)] == 13
    assert lines[("many", 1, "inner", "e")] == 15


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever the text, the line finder does not fail: it runs next to the real parser."""
    assert all(line >= 1 for line in key_lines(text).values())
