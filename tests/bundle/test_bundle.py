"""A bundle is opened whole and unchanged, or refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avq import bundle as bundles
from avq.bundle import EngineUse, Manifest, StrategyUse, open_bundle, staging_folder, write_bundle
from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.errors import BundleError, PlanError, RefusedError
from avq.types import (
    DecoderSpec,
    Edge,
    NodePrecision,
    PreprocessSpec,
    QuantizationPlan,
    QuantPoint,
    TensorView,
)

PARTS = {"model.onnx": b"model " * 100, "plan.json": b"{}", "report.html": b"<p>fine</p>"}


def manifest(**changes: Any) -> Manifest:
    return msgspec.structs.replace(
        Manifest(
            avq_version="0.1.0",
            created="2026-01-02T03:04:05Z",
            accepted=True,
            strategy=StrategyUse(name="mixed", owner="avq", version="0.1.0"),
            target="cpu",
            engine=EngineUse(name="onnxruntime", version="1.20", precision="int8+f32", encoding="u8"),
            isa="x86-64 avx2",
            input=TensorView("images", "uint8", (1, 3, 64, 96)),
            outputs=(TensorView("out", "float32", (1, 126, 85)),),
            preprocess=PreprocessSpec(width_px=96, height_px=64),
            decoder=DecoderSpec("yolox", {"strides": [8, 16, 32]}, num_classes=2),
            class_names=("person", "car"),
            graph_digest="ab" * 32,
            metrics={"float": {"map": 0.32, "p50_ms": 10.0}},
            reasons=("lost 0.2 % of the boxes",),
        ),
        **changes,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    final = tmp_path / "good.avq"
    write_bundle(staging_folder(final), final, manifest(), PARTS)
    return final


def test_what_was_written_is_read_back(folder: Path) -> None:
    opened = open_bundle(folder)
    assert {part: opened.read(part) for part in opened.manifest.parts} == PARTS
    assert opened.digest == opened.manifest.digest and len(opened.digest) == 64
    assert opened.manifest.preprocess == PreprocessSpec(width_px=96, height_px=64)
    assert opened.manifest.decoder == DecoderSpec("yolox", {"strides": [8, 16, 32]}, num_classes=2)
    opened.verify()
    assert [p.name for p in folder.parent.iterdir()] == ["good.avq"], "no staging is left behind"


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    def digest(name: str, **changes: Any) -> str:
        parts = changes.pop("parts", PARTS)
        final = tmp_path / name
        return write_bundle(staging_folder(final), final, manifest(**changes), parts).digest

    assert digest("a") == digest("b")
    assert digest("c", target="openvino") != digest("a2")
    assert digest("d", parts={**PARTS, "model.onnx": b"other"}) != digest("a3")


@pytest.mark.parametrize("part", sorted(PARTS))
@pytest.mark.parametrize("harm", ["remove", "truncate", "lengthen", "flip", "swap", "link", "pipe"])
def test_a_harmed_part_is_refused_by_name(folder: Path, part: str, harm: str) -> None:
    path = folder / part
    content = bytearray(path.read_bytes())
    path.unlink()
    if harm == "truncate":
        path.write_bytes(content[:-1])
    elif harm == "lengthen":
        path.write_bytes(content + b"!")
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "swap":
        path.write_bytes(next(other for name, other in PARTS.items() if name != part))
    elif harm == "link":
        outside = folder.parent / "outside"
        outside.write_bytes(content)
        path.symlink_to(outside)
    elif harm == "pipe":
        os.mkfifo(path)
    opened = open_bundle(folder)
    with pytest.raises(BundleError, match=part):
        opened.read(part)
    with pytest.raises(BundleError):
        opened.verify()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_the_manifest_is_noticed(data: st.DataObject) -> None:
    raw = bytearray(bundles.render(bundles.sealed(manifest(), {})))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BundleError):
        bundles_parse(bytes(raw))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000))
def test_a_cut_manifest_is_noticed(length: int) -> None:
    raw = bundles.render(bundles.sealed(manifest(), {}))
    with pytest.raises(BundleError):
        bundles_parse(raw[: min(length, len(raw) - 1)])


def bundles_parse(raw: bytes) -> None:
    from avq.bundle.manifest import parse

    parse(raw, "somewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "format": 2, "avq_version": "9.9"}, "newer avq(.|\n)*9.9"),
        (lambda m: {**m, "format": "1"}, "unknown format"),
        (lambda m: {k: v for k, v in m.items() if k != "format"}, "unknown format"),
        (lambda m: {**m, "surprise": 1}, "surprise"),
        (lambda m: {k: v for k, v in m.items() if k != "engine"}, "engine"),
        (lambda m: {**m, "accepted": "yes"}, "damaged"),
        (lambda m: {**m, "target": "openvino"}, "digest does not match"),
        (lambda m: {**m, "parts": {"../evil": {"sha256": "", "bytes": 1}}}, "plain file name"),
        (lambda m: [m], "unknown format"),
    ],
)
def test_an_edited_manifest_is_refused(folder: Path, change: Any, message: str) -> None:
    file = folder / "manifest.json"
    file.write_bytes(msgspec.json.encode(change(msgspec.json.decode(file.read_bytes()))))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_things_that_are_not_bundles(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="a file"):
        open_bundle(folder / "model.onnx")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(empty)


def test_measured_numbers_may_be_numpys(tmp_path: Path) -> None:
    final = tmp_path / "b"
    metrics = {"map": np.float32(0.25), "n": np.int64(3), "lost": float("nan"), "model": Path("m.onnx")}
    write_bundle(staging_folder(final), final, manifest(metrics=metrics), {})
    assert open_bundle(final).manifest.metrics == {"map": 0.25, "n": 3, "lost": None, "model": "m.onnx"}
    with pytest.raises(BundleError, match="JSON values only"):
        write_bundle(staging_folder(final), final, manifest(metrics={"x": np.zeros(3)}), {})


def test_only_accepted_bundles_are_served(tmp_path: Path) -> None:
    for accepted, message in ((False, "lost 0.2 %"), ("pending-target", "avq compile")):
        final = tmp_path / str(accepted)
        write_bundle(staging_folder(final), final, manifest(accepted=accepted), PARTS)
        with pytest.raises(RefusedError, match=message):
            open_bundle(final)
        assert open_bundle(final, allow_unaccepted=True).manifest.accepted == accepted


def test_a_bundle_for_other_instructions_is_refused(folder: Path) -> None:
    assert open_bundle(folder, isa="x86-64 avx2 avx512f").manifest.isa == "x86-64 avx2"
    with pytest.raises(BundleError, match=r"missing: avx2(.|\n)*rebuild"):
        open_bundle(folder, isa="x86-64")
    with pytest.raises(BundleError, match="x86-64 avx2; here: aarch64"):
        open_bundle(folder, isa="aarch64 asimd")


def test_a_bundle_is_replaced_whole(folder: Path) -> None:
    old = open_bundle(folder)
    write_bundle(staging_folder(folder), folder, manifest(target="openvino"), {"model.onnx": b"new"})
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert open_bundle(folder).read("model.onnx") == b"new"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(BundleError, match=r"model\.onnx"):
        old.read("model.onnx")  # the folder changed under the reader: the digest tells


def test_replacing_without_an_exchange_of_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avq.bundle.writer._exchange", lambda a, b: False)
    write_bundle(staging_folder(folder), folder, manifest(), {"model.onnx": b"new"})
    assert open_bundle(folder).read("model.onnx") == b"new"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_staged_bundle_can_be_checked_and_finished(tmp_path: Path) -> None:
    final = tmp_path / "b"
    staging = staging_folder(final)
    first = bundles.write_staged(staging, manifest(accepted=False), PARTS)
    assert open_bundle(staging, allow_unaccepted=True).read("plan.json") == b"{}"
    engine = staging / "engine.bin"
    engine.write_bytes(b"e" * 5000)
    judged = msgspec.structs.replace(first, accepted=True)
    bundles.write_staged(staging, judged, {"report.html": b"done", "engine.bin": engine})
    assert not final.exists()
    bundles.publish(staging, final)
    opened = open_bundle(final)
    opened.verify()
    assert opened.read("report.html") == b"done" and opened.has("engine.bin")


def test_other_peoples_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"not a bundle(.|\n)*dear\.jpg"):
        staging_folder(tmp_path / "photos")
    with pytest.raises(BundleError, match="not a folder"):
        staging_folder(tmp_path / "photos" / "dear.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(BundleError, match="is a link"):
        staging_folder(tmp_path / "link")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "manifest.json", "signature", "a\0b"])
def test_part_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="plain file name"):
        write_bundle(staging_folder(tmp_path / "b"), tmp_path / "b", manifest(), {name: b""})
    assert not (tmp_path / "b").exists()


def test_arrays_are_read_without_unpickling(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, frame=np.arange(6).reshape(2, 3))
    np.savez(bad, frame=np.array([{"a": 1}], dtype=object))
    final = tmp_path / "b"
    parts: dict[str, Any] = {"golden.npz": good, "evil.npz": bad, "text.npz": b"no zip"}
    write_bundle(staging_folder(final), final, manifest(), parts)
    opened = open_bundle(final)
    assert opened.arrays("golden.npz")["frame"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for part in ("evil.npz", "text.npz"):
        with pytest.raises(BundleError, match=part):
            opened.arrays(part)
    with pytest.raises(BundleError, match=r"did you mean .golden\.npz."):
        opened.read("golden")


def test_reading_a_bundle_needs_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from avq.bundle import open_bundle; import avq.bundle.plan\n"
        "open_bundle(Path(sys.argv[1])).verify()\n"
        "heavy = {'onnx', 'scipy', 'torch', 'onnxruntime', 'openvino', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def plan() -> QuantizationPlan:
    weights = QuantPoint(
        Edge("w"), np.array([0.5, 0.25], np.float32), np.zeros(2, np.int64), axis=0, narrow=True
    )
    act = QuantPoint(Edge("x", "conv", 0), np.array(0.1, np.float32), np.array(3, np.int64), signed=False)
    return QuantizationPlan(
        graph_digest="ff",
        points=(weights, act),
        ties=(frozenset({Edge("a"), Edge("b", "cat", 1)}),),
        precisions={"conv": NodePrecision("int8", "wins 1 ms")},
        overrides={"bias": np.array([1.5, -2.0], np.float32)},
        ranges={"x": (-1.0, 2.0)},
        owner="mixed",
        owner_version="1",
    )


def test_a_plan_survives_the_disk_with_its_digest() -> None:
    text, arrays = plan_to_parts(plan())
    back = plan_from_parts(text, arrays)
    assert back.digest == plan().digest
    assert back.point_for("x", "conv", 0) is not None and back.ties == plan().ties
    assert plan_to_parts(back) == (text, arrays), "same plan, same bytes"


def test_a_plan_with_numpy_numbers_is_refused_by_name() -> None:
    odd = QuantPoint(Edge("w"), np.ones(2, np.float32), np.zeros(2, np.int64), axis=np.int64(0))
    with pytest.raises(PlanError, match=r"numpy\.int64"):
        plan_to_parts(QuantizationPlan("ff", points=(odd,)))


@pytest.mark.parametrize(
    "change",
    [
        lambda t, a: (t.replace(b"wins", b"lose"), a),
        lambda t, a: (t[:-20], a),
        lambda t, a: (t, a[:-30]),
        lambda t, a: (b"[]", a),
        lambda t, a: (t.replace(b'"format": 1', b'"format": 7'), a),
        lambda t, a: (t, plan_to_parts(QuantizationPlan("ff"))[1]),
    ],
)
def test_a_broken_plan_is_refused(change: Any) -> None:
    with pytest.raises(PlanError, match="plan is damaged"):
        plan_from_parts(*change(*plan_to_parts(plan())))
