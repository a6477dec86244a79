"""Array dataclasses: compare without raising, stay read-only, survive pickling; Detections slice like arrays."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from multiprocessing import get_context
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import avq.measure.accuracy
import avq.measure.drift
import avq.measure.golden
import avq.measure.labels
import avq.measure.latency
import avq.toolbox
import avq.types
from avq.measure.accuracy import Boxes
from avq.measure.drift import DriftReference, DriftVerdict
from avq.measure.golden import PairedRows
from avq.measure.labels import LabelledImage
from avq.measure.latency import LatencySamples
from avq.toolbox import BiasCorrection, Equalization, Pair, RoundedWeights
from avq.types import (
    Detection,
    Detections,
    Edge,
    Frame,
    GraphView,
    ImportedQuantization,
    ModelInput,
    NodeView,
    QuantizationPlan,
    QuantPoint,
)
from avq.types.arrays import ArrayRecord

_NAN = float("nan")


def _floats(*values: float) -> Any:
    return np.array(values, np.float32)


def _detections(count: int = 3, seq: int = 0) -> Detections:
    boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    return Detections(
        boxes, np.linspace(0.9, 0.1, count, dtype=np.float32), np.arange(count), "front", seq, 7
    )


def _point(scale: float = 0.5) -> QuantPoint:
    return QuantPoint(Edge("x"), _floats(scale, 1.0), np.zeros(2, np.int64), axis=0)


def _drift() -> DriftReference:
    values: Any = [np.array([value]) for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    return cast(Any, DriftReference)(("a",), *values, np.arange(10.0))


#: One maker per public class with arrays; every call gives fresh arrays of the same content.
_MAKERS: dict[type, Callable[[], Any]] = {
    Detections: _detections,
    Frame: lambda: Frame("front", 1, 2, np.zeros((2, 3, 3), np.uint8)),
    ModelInput: lambda: ModelInput(np.zeros((1, 3, 2, 2), np.uint8), np.eye(2, 3), (2, 2)),
    QuantPoint: _point,
    QuantizationPlan: lambda: QuantizationPlan("d", (_point(),), overrides={"w": _floats(1, _NAN)}),
    ImportedQuantization: lambda: ImportedQuantization(
        "qonnx", points=(_point(),), overrides={"w": _floats(1)}
    ),
    NodeView: lambda: NodeView("n", "Constant", (), ("y",), {"value": _floats(1, _NAN), "axes": [0, 1]}),
    GraphView: lambda: GraphView((), (), (), {}, {"w": _floats(1, 2)}, 17, "digest"),
    BiasCorrection: lambda: BiasCorrection({"b": _floats(1)}, {"n": 0.5}, {}),
    Equalization: lambda: Equalization({"w": _floats(1)}, {Pair("a", "b", ()): np.ones(2)}, {}),
    RoundedWeights: lambda: RoundedWeights({"w": _floats(1)}, {"w": (0.2, 0.1)}, {}),
    Boxes: lambda: Boxes(np.zeros((1, 4), np.float32), np.zeros(1, np.int64), _floats(1), np.zeros(1, bool)),
    LabelledImage: lambda: LabelledImage(
        1, "a.png", (2, 2), np.zeros((1, 4), np.float32), np.zeros(1, np.int64), np.zeros(1, bool)
    ),
    PairedRows: lambda: PairedRows({"out": _floats(1)}, {"out": _floats(2)}, 1, 0),
    LatencySamples: lambda: LatencySamples(np.arange(3)),
    DriftReference: _drift,
    DriftVerdict: lambda: DriftVerdict(_drift(), np.ones((2, 1)), np.ones(2)),
}
_MODULES = (
    avq.types,
    avq.toolbox,
    avq.measure.accuracy,
    avq.measure.drift,
    avq.measure.golden,
    avq.measure.labels,
    avq.measure.latency,
)
_EVERY = pytest.mark.parametrize("make", _MAKERS.values(), ids=[kind.__name__ for kind in _MAKERS])


def _arrays(value: Any) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, dict):
        return [array for each in value.values() for array in _arrays(each)]
    if isinstance(value, tuple):
        return [array for each in value for array in _arrays(each)]
    if is_dataclass(value):
        return [array for f in fields(value) for array in _arrays(getattr(value, f.name))]
    return []


def test_every_public_array_dataclass_is_a_record() -> None:
    kinds = {kind for module in _MODULES for _, kind in inspect.getmembers(module, inspect.isclass)}
    public = {kind for kind in kinds if is_dataclass(kind) and not kind.__name__.startswith("_")}
    array_types = ("F32", "F64", "I64", "U8", "AnyArray", "NDArray")
    with_arrays = {
        kind for kind in public if any(t in str(f.type) for f in fields(kind) for t in array_types)
    }
    assert with_arrays - {ArrayRecord} <= set(_MAKERS)
    assert all(issubclass(kind, ArrayRecord) and kind.__eq__ is ArrayRecord.__eq__ for kind in _MAKERS)


@_EVERY
def test_equal_content_is_equal_and_hashes_alike(make: Callable[[], Any]) -> None:
    assert (make() == make()) is True
    assert hash(make()) == hash(make())
    assert len({make(), make()}) == 1
    assert make() != "another kind"


@_EVERY
def test_arrays_are_read_only_also_after_pickling_and_copying(make: Callable[[], Any]) -> None:
    record = make()
    for each in (record, pickle.loads(pickle.dumps(record)), copy.deepcopy(record), copy.copy(record)):
        assert each == record
        assert _arrays(each)
        for array in _arrays(each):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


def test_arrays_of_the_caller_stay_writable_and_frames_are_not_copied() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    frame = Frame("front", 0, 0, pixels)
    pixels[0, 0] = 9
    assert np.shares_memory(frame.pixels, pixels)
    assert frame.pixels[0, 0, 0] == 9


def test_a_point_keeps_its_scale_when_the_caller_changes_the_array() -> None:
    scale = _floats(0.5, 1.0)
    point = QuantPoint(Edge("x"), scale, np.zeros(2, np.int64), axis=0)
    scale[0] = -1
    assert point == _point()


def test_other_content_dtype_or_shape_is_not_equal() -> None:
    point = _point()
    assert point != _point(0.25)
    assert point != replace(point, scale=point.scale.astype(np.float64))
    assert point != replace(point, scale=_floats(0.5), zero_point=np.zeros(1, np.int64))
    assert _detections() != _detections(seq=1)
    assert Detections.none() != _detections()
    assert QuantizationPlan("d", overrides={"w": _floats(1)}) != QuantizationPlan(
        "d", overrides={"v": _floats(1)}
    )


def _process(record: Detections) -> tuple[bool, Detections]:
    return record.scores.flags.writeable, record[:1]


def test_records_travel_between_processes() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        writeable, first = pool.submit(_process, _detections()).result()
    assert not writeable
    assert first == _detections()[:1]
    assert not first.scores.flags.writeable


def test_one_box_and_iteration_give_plain_numbers() -> None:
    detections = _detections()
    assert detections[0] == Detection((0.0, 1.0, 2.0, 3.0), cast(Any, pytest.approx(0.9)), 0)
    assert detections[np.int64(-1)].class_id == 2
    assert [each.class_id for each in detections] == [0, 1, 2]
    assert list(detections) == [detections[i] for i in range(len(detections))]
    with pytest.raises(IndexError):
        detections[3]
    with pytest.raises(IndexError):
        detections[np.array([True, False])]


def test_empty_detections() -> None:
    assert Detections.none().is_empty
    assert not _detections().is_empty
    assert _detections()[[]].is_empty
    assert list(Detections.none("front", 1)) == []
    assert Detections.none("front", 1)[:2] == Detections.none("front", 1)


@st.composite
def _some_detections(draw: st.DrawFn) -> Detections:
    count = draw(st.integers(0, 8))
    width: dict[str, Any] = {"width": 32, "allow_nan": True, "allow_infinity": True}
    return Detections(
        draw(hnp.arrays(np.float32, (count, 4), elements=st.floats(**width))),
        draw(hnp.arrays(np.float32, count, elements=st.floats(**width))),
        draw(hnp.arrays(np.int64, count)),
        draw(st.sampled_from(["", "front"])),
        draw(st.integers(0, 2)),
    )


@settings(max_examples=40)
@given(_some_detections(), st.data())
def test_selection_follows_numpy(detections: Detections, data: st.DataObject) -> None:
    count = len(detections)
    mask = data.draw(hnp.arrays(bool, count))
    part = data.draw(st.slices(count))
    indices = data.draw(st.lists(st.integers(0, count - 1), max_size=5)) if count else []
    numbers = np.array(indices, np.int64)
    keys = ((mask, mask), (part, part), (indices, numbers), (numbers, numbers), (mask.tolist(), mask))
    for key, numpy_key in keys:
        rows = np.arange(count)[numpy_key]
        selected = detections[key]
        assert len(selected) == len(rows)
        assert np.array_equal(selected.boxes_xyxy_px, detections.boxes_xyxy_px[rows], equal_nan=True)
        assert np.array_equal(selected.scores, detections.scores[rows], equal_nan=True)
        assert np.array_equal(selected.class_ids, detections.class_ids[rows])
        assert (selected.camera, selected.seq) == (detections.camera, detections.seq)


@settings(max_examples=40)
@given(_some_detections(), _some_detections())
def test_equality_is_exact_and_agrees_with_the_hash(a: Detections, b: Detections) -> None:
    same = all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name != "class_ids")
        for name in ("boxes_xyxy_px", "scores", "class_ids")
    ) and (a.camera, a.seq) == (b.camera, b.seq)
    assert (a == b) is same
    assert a == a[:]
    assert hash(a) == hash(a[:])
    if same:
        assert hash(a) == hash(b)


@settings(max_examples=40)
@given(_some_detections(), st.floats(0, 1))
def test_above_keeps_scores_from_the_limit_on(detections: Detections, limit: float) -> None:
    kept = detections.above(limit)
    assert len(kept) == int((detections.scores >= limit).sum())
    assert all(each.score >= np.float32(limit) or each.score >= limit for each in kept)
