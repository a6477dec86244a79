"""AIMET encodings of every version: read, written, converted, refused."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq.builder.encodings import WRITTEN_VERSIONS, parse_aimet, write_aimet
from avq.builder.encodings.aimet_entry import Encoding, UnsupportedEntry
from avq.builder.encodings.read import read_side_file
from avq.builder.encodings.write import Lowered, plan_as_aimet
from avq.errors import CalibrationError, PlanError
from avq.types import Edge, QuantizationPlan, QuantPoint
from tests.builder.encodings.network import ACTIVATIONS, WEIGHTS, graph

VIEW = graph()
scales = st.floats(2.0**-100, 2.0**100, width=32)


def grid(scale: float, offset: int, symmetric: str = "False", **changed: float) -> dict[str, Any]:
    """One 8-bit entry of 0.6.1, its min and max as the specification defines them, unless ``changed``."""
    low, high = scale * offset, scale * (255 + offset)
    entry = {
        "bitwidth": 8,
        "dtype": "int",
        "is_symmetric": symmetric,
        "max": high,
        "min": low,
        "scale": scale,
    }
    return {**entry, "offset": changed.pop("stored_offset", offset), **changed}


def v0(activations: dict[str, Any] | None = None, params: dict[str, Any] | None = None, **rest: Any) -> bytes:
    sections = {"activation_encodings": activations or {}, "param_encodings": params or {}}
    return json.dumps({"version": "0.6.1", **sections, **rest}, indent=4, sort_keys=True).encode()


def v1(*entries: dict[str, Any], params: tuple[dict[str, Any], ...] = ()) -> bytes:
    body = {"version": "1.0.0", "activation_encodings": entries, "param_encodings": params}
    return json.dumps(body, indent=4, sort_keys=True).encode()


def v2(*entries: dict[str, Any], version: str = "2.0.0") -> bytes:
    return json.dumps({"version": version, "encodings": entries}, indent=4, sort_keys=True).encode()


def entry1(name: str, scale: list[float], offset: list[int], **more: Any) -> dict[str, Any]:
    body = {"name": name, "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": False}
    return {**body, "scale": scale, "offset": offset, **more}


def over_graph(data: bytes, folder: Path) -> Any:
    path = folder / "model.encodings"
    path.write_bytes(data)
    return read_side_file(path, VIEW)


# ---- round trips --------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> QuantizationPlan:
    """Grids on whole activations and on weights, per tensor or per output channel."""
    names = draw(st.lists(st.sampled_from(ACTIVATIONS), unique=True))
    points = [draw(point_on(Edge(name), (), None)) for name in names]
    for name in draw(st.lists(st.sampled_from(sorted(WEIGHTS)), unique=True)):
        shape, axis = WEIGHTS[name]
        per_channel = draw(st.booleans())
        edge = Edge(name, VIEW.consumers(name)[0][0].name, 1)
        points.append(
            draw(point_on(edge, (shape[axis],) if per_channel else (), axis if per_channel else None))
        )
    return QuantizationPlan(VIEW.digest, tuple(sorted(points, key=lambda p: p.edge)))


def point_on(edge: Edge, shape: tuple[int, ...], axis: int | None) -> st.SearchStrategy[QuantPoint]:
    def made(bits: int, signed: bool, values: list[float], zeros: list[int]) -> QuantPoint:
        zero = np.zeros(shape) if signed else np.reshape(np.array(zeros) % (1 << bits), shape)
        scale = np.reshape(np.array(values, np.float32), shape)
        return QuantPoint(edge, scale, zero.astype(np.int64), axis=axis, bits=bits, signed=signed)

    count = int(np.prod(shape))
    zeros = st.lists(st.integers(0, 65535), min_size=count, max_size=count)
    values = st.lists(scales, min_size=count, max_size=count)
    return st.builds(made, st.sampled_from([4, 8, 16]), st.booleans(), values, zeros)


def same(one: QuantPoint, other: QuantPoint) -> bool:
    return (
        one.settings() == other.settings()
        and one.scale.tobytes() == other.scale.tobytes()
        and np.array_equal(one.zero_point, other.zero_point)
    )


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(plan=plans(), order=st.sampled_from(list(permutations(WRITTEN_VERSIONS))))
def test_a_plan_survives_every_chain_of_versions_exactly(
    plan: QuantizationPlan, order: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Plan -> one version -> plan -> the next ...: the same points, and each file again to the byte."""
    folder, lowered = tmp_path_factory.mktemp("chain"), Lowered(weights=frozenset(WEIGHTS))
    current = plan
    files: dict[Any, Any] = {}
    for version in (*order, order[0]):
        data = plan_as_aimet(current, lowered, version).data
        assert files.setdefault(version, data) == data
        assert write_aimet(parse_aimet(data)) == data
        foreign = over_graph(data, folder)
        assert not foreign.findings or not plan.points or {f.code for f in foreign.findings} == {"AVQ-Q59"}
        points = sorted(foreign.points, key=lambda p: p.edge)
        assert len(points) == len(plan.points)
        assert all(same(a, b) for a, b in zip(plan.points, points, strict=True))
        current = QuantizationPlan(VIEW.digest, tuple(points))


def test_real_files_are_read_and_written_again_with_the_same_values(material: Path) -> None:
    files = sorted((material / "aimet").iterdir())
    assert files
    for file in files:
        parsed = parse_aimet(file.read_bytes(), file.name)
        written = write_aimet(parsed)
        assert json.loads(written) == json.loads(file.read_bytes())
        assert write_aimet(parse_aimet(written)) == written


def test_what_is_no_integer_grid_is_kept_word_for_word() -> None:
    lpbq = entry1(
        "w", [0.1], [-8], enc_type="LPBQ", compressed_bw=4, per_block_int_scale=[3, 5], block_size=2
    )
    meta = {"name": "w", "output_dtype": "int4", "axis": 1, "block_size": 32}
    meta["y_scale"] = {"x": [[3, 5]], "x_scale": [0.001], "axis": 0}
    shifted = {"name": "w", "output_dtype": "int2", "axis": 0, "y_scale": [0.1], "y_zero_point": [-0.5]}
    half = {"name": "w", "output_dtype": "float16", "y_scale": 1.0}
    halves = {"bitwidth": 16, "dtype": "float"}
    for data in (
        v1(params=(lpbq,)),
        v2(meta, version="2.1.0"),
        v2(shifted),
        v2(half),
        v0({"x": [halves]}, excluded_layers=["Conv_3"], quantizer_args={"quant_scheme": "post_training_tf"}),
    ):
        file = parse_aimet(data)
        assert [type(entry) for entry in file.entries] == [UnsupportedEntry]
        assert write_aimet(file) == data


# ---- what the numbers mean ----------------------------------------------------------------------------------


def levels(point: QuantPoint) -> np.ndarray:
    return point.scale.astype(np.float64) * (np.arange(point.qmin, point.qmax + 1) - point.zero_point)


@pytest.mark.parametrize(
    ("offset", "symmetric"), [(0, "False"), (-37, "False"), (-128, "True"), (-255, "False")]
)
def test_a_grid_is_counted_from_its_offset(offset: int, symmetric: str, tmp_path: Path) -> None:
    """x = scale * (q + offset) with q from 0 to 255, and the signed integers are 128 less."""
    foreign = over_graph(v0({"flat": [grid(0.25, offset, symmetric=symmetric)]}), tmp_path)
    (point,) = foreign.points
    assert np.array_equal(levels(point), 0.25 * (np.arange(256) + offset))
    assert point.signed == (symmetric == "True")
    assert point.zero_point == (0 if point.signed else -offset)


def test_strictly_symmetric_grids_have_no_lowest_level(tmp_path: Path) -> None:
    strict = {**grid(0.5, -127, symmetric="True"), "min": -63.5, "max": 63.5}
    for data in (v0({"flat": [strict]}), v1(entry1("flat", [0.5], [-127], is_sym=True))):
        (point,) = over_graph(data, tmp_path).points
        assert point.narrow and np.array_equal(levels(point), 0.5 * np.arange(-127, 128))
    plan = QuantizationPlan(VIEW.digest, (point,))
    for version in ("0.6.1", "1.0.0"):
        (again,) = over_graph(plan_as_aimet(plan, Lowered(), version).data, tmp_path).points
        assert same(point, again)
    with pytest.raises(PlanError, match="unused"):
        plan_as_aimet(plan, Lowered(), "2.0.0")


def test_version_2_takes_the_storage_type_and_a_zero_point(tmp_path: Path) -> None:
    foreign = over_graph(
        v2(
            {"name": "flat", "output_dtype": "uint8", "y_scale": 0.5, "y_zero_point": 41},
            {"name": "rows", "output_dtype": "int8", "y_scale": 0.5, "y_zero_point": -3},
            {"name": "y", "output_dtype": "int16", "y_scale": [0.25]},
        ),
        tmp_path,
    )
    flat, rows, y = foreign.points
    assert (flat.signed, flat.zero_point, flat.bits) == (False, 41, 8)
    assert (rows.signed, rows.zero_point, rows.bits) == (True, -3, 8)
    assert (y.signed, y.zero_point, y.bits, y.scale.shape) == (True, 0, 16, ())


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_the_operator_tells_the_channel_axis(name: str, tmp_path: Path) -> None:
    shape, axis = WEIGHTS[name]
    values = [0.5 + i / 8 for i in range(shape[axis])]
    old = v0(params={name: [grid(s, -128, symmetric="True") for s in values]})
    new = v1(params=(entry1(name, values, [-128] * len(values), enc_type="PER_CHANNEL", is_sym=True),))
    for data in (old, new):
        (point,) = over_graph(data, tmp_path).points
        assert (point.axis, point.signed) == (axis, True)
        assert np.array_equal(point.scale, np.array(values, np.float32))
        assert point.edge == Edge(name, VIEW.consumers(name)[0][0].name, 1)


def test_blocks_run_along_the_inputs_of_their_operator(tmp_path: Path) -> None:
    """1.0.0 lists them by output channel, whatever way the weight lies."""
    for name, turned in (("rows.weight", False), ("columns.weight", True)):
        shape, axis = WEIGHTS[name]
        outputs, inputs = shape[axis], shape[1 - axis]
        blocks = -(-inputs // 3)
        values = (np.arange(outputs * blocks) + 1.0).tolist()
        body = entry1(name, values, [-8] * len(values), enc_type="PER_BLOCK", bw=4, is_sym=True, block_size=3)
        (point,) = over_graph(v1(params=(body,)), tmp_path).points
        wanted = np.reshape(values, (outputs, blocks))
        assert np.array_equal(point.scale, wanted.T if turned else wanted)
        assert (point.axis, point.block_size, point.bits) == (1 - axis, 3, 4)
        again = plan_as_aimet(QuantizationPlan(VIEW.digest, (point,)), Lowered(frozenset(WEIGHTS)), "2.0.0")
        (same_point,) = over_graph(again.data, tmp_path).points
        assert same(point, same_point)


# ---- findings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (v0({"flat": [grid(0.1, 0)], "gone": [grid(0.1, 0)]}), "AVQ-Q50"),
        (v0({"flat": [grid(0.1, 0, max=26.0)]}), "AVQ-Q51"),
        (v0({"flat": [grid(0.1, -20, stored_offset=-10)]}), "AVQ-Q51"),
        (v0({"flat": [grid(0.1, 0)]}, {"flat": [grid(0.2, 0)]}), "AVQ-Q51"),
        (v1(entry1("flat", [0.1], [7])), "AVQ-Q51"),
        (v0({"flat": [grid(0.1, -20, stored_offset=21)]}), "AVQ-Q52"),
        (v1(entry1("flat", [0.0], [0])), "AVQ-Q53"),
        (v1(entry1("flat", [1e-42], [0])), "AVQ-Q53"),
        (v0({"flat": [{"bitwidth": 16, "dtype": "float"}]}), "AVQ-Q54"),
        (v1(params=(entry1("rows.weight", [0.1], [-(2**31)], bw=32, is_sym=True),)), "AVQ-Q54"),
        (v1(entry1("flat", [0.1], [-300])), "AVQ-Q55"),
        (v1(entry1("flat", [0.1], [-1], bw=1)), "AVQ-Q55"),
        (v1(entry1("flat", [0.1], [0], zero_point_shift=[0.5])), "AVQ-Q55"),
        (v2({"name": "flat", "output_dtype": "int2", "y_scale": 0.1, "y_zero_point": -0.5}), "AVQ-Q55"),
        (v1(params=(entry1("rows.weight", [0.1] * 4, [0] * 4, enc_type="PER_CHANNEL"),)), "AVQ-Q56"),
        (v2({"name": "rows.weight", "output_dtype": "int8", "y_scale": [9.0] * 6, "axis": 2}), "AVQ-Q56"),
        (v1(params=(entry1("rows.weight", [0.001], [-128], is_sym=True),)), "AVQ-Q59"),
    ],
)
def test_every_pitfall_has_its_number(data: bytes, code: str, tmp_path: Path) -> None:
    foreign = over_graph(data, tmp_path)
    found = {finding.code: finding for finding in foreign.findings}
    assert set(found) == {code}
    assert "model.encodings:" in found[code].seen and found[code].fix


def test_an_offset_above_zero_is_taken_from_min_and_scale(tmp_path: Path) -> None:
    (point,) = over_graph(v0({"flat": [grid(0.25, -20, stored_offset=21)]}), tmp_path).points
    assert np.array_equal(levels(point), 0.25 * (np.arange(256) - 20))


def test_a_real_hand_made_override_tells_two_grids_at_once(material: Path, tmp_path: Path) -> None:
    """The published file for a YOLOv8 output: its scale spans 661.9, its range 656.7."""
    text = (material / "aimet" / "qidk_yolov8_mixed_precision.encodings").read_text()
    foreign = over_graph(
        text.replace("/model.22/Sigmoid_output_0", "rows").replace("output0", "y").encode(), tmp_path
    )
    assert [point.edge.tensor for point in foreign.points] == ["rows"]
    (finding,) = foreign.errors
    assert finding.code == "AVQ-Q51" and "y (model.encodings:15)" in finding.seen


# ---- broken files -------------------------------------------------------------------------------------------

BROKEN = [
    ('{\n"version": "1.0.0",\n"activation_encodings": [', 3, "not JSON"),
    ("[]", 1, "one JSON object"),
    ('{"version": "3.0.0",\n"encodings": []}', 1, "3.0.0 is not supported"),
    ('{"version": "2.0.0"}', 1, "not a list"),
    ('{"version": "2.0.0", "encodings": [\n{"name": "x", "y_scale": 1}]}', 2, "'output_dtype'"),
    (
        '{"version": "2.0.0", "encodings": [\n{"name": "x", "output_dtype": "int99", "y_scale": 1}]}',
        2,
        "dtype",
    ),
    (
        '{"version": "2.0.0", "encodings": [\n{"name": "x", "output_dtype": "int8", "y_scale": [1, 2]}]}',
        2,
        "axis",
    ),
    (
        '{"version": "2.0.0", "encodings": [\n{"name": "x", "output_dtype": "int8", "y_scale": "1"}]}',
        2,
        "y_scale",
    ),
    ('{"version": "2.0.0", "encodings": [\n\n{"y_scale": 1}]}', 3, "no name"),
    ('{"version": "1.0.0", "activation_encodings": {}}', 1, "not a list"),
    ('{"version": "1.0.0", "activation_encodings": [\n{"name": "x", "bw": 8}]}', 2, "'enc_type'"),
    ('{"version": "0.6.1", "activation_encodings": {\n"x": [\n{"bitwidth": 8}]}}', 3, "is_symmetric"),
    ('{"version": "0.6.1", "activation_encodings": {\n"x": []}}', 1, "no list"),
    ('{"version": "0.6.1", "activation_encodings": {\n"conv1":\n{"output": {}}}}', 3, "torch module"),
    ('{"version": "0.6.1",\n"activation_encodings": {\n"x": [], "x": []}}', 2, "one key twice"),
    ('{"version": "0.6.1",\n\n"x": NaN}', 3, "not finite"),
    ("[" * 100_000, 1, "nested too deeply"),
]


@pytest.mark.parametrize(("text", "line", "what"), BROKEN)
def test_a_broken_file_names_its_line(text: str, line: int, what: str) -> None:
    with pytest.raises(CalibrationError) as error:
        parse_aimet(text.encode(), "m.encodings")
    assert f"m.encodings:{line}:" in error.value.seen
    assert what in error.value.what
    assert error.value.fix


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_never_breaks_the_program(data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from(
            [
                v0({"a": [grid(0.1, -3)]}, {"w": [grid(0.1, -128, symmetric="True")] * 2}),
                v1(
                    entry1("a", [0.1], [-3]),
                    params=(entry1("w", [1.0, 2.0], [0, 0], enc_type="PER_CHANNEL"),),
                ),
                v2(
                    {
                        "name": "a",
                        "output_dtype": "uint8",
                        "y_scale": [0.1, 1],
                        "axis": 0,
                        "y_zero_point": [1, 2],
                    }
                ),
            ]
        )
    )
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 12))
    patch = data.draw(st.sampled_from([b"", b"0", b"-1", b"{", b"null", b'"x"', b"[]", b"1e999", b"\xff"]))
    try:
        file = parse_aimet(whole[:at] + patch + whole[at + cut :])
        assert all(isinstance(entry, Encoding | UnsupportedEntry) for entry in file.entries)
        write_aimet(file)
    except CalibrationError as error:
        assert error.what
