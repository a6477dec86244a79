"""``avq inspect``: contents of a bundle, model, calibration file, calibration cache or AIMET encodings file."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict, cast

import msgspec

from avq.bundle import PLAN_ARRAYS, PLAN_JSON, is_bundle, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.errors import RequestError


class _Common(TypedDict):
    kind: str
    digest: str
    accepted: bool | str | None
    inputs: list[Any]
    outputs: list[Any]
    preprocess: dict[str, Any] | None
    plan: dict[str, Any]
    parts: dict[str, Any]


class InspectJson(_Common, total=False):
    """Object of ``avq inspect --json``; a bundle has every other key of its manifest too."""

    # models
    opset: int
    operators: dict[str, int]
    parameters: int
    messages: list[str]
    # calibration files
    images: int
    origin: dict[str, Any]
    complete: bool
    # calibration caches and AIMET encodings
    producer: str
    grids: dict[str, int]
    entries: list[dict[str, object]]


def inspect(path: Path) -> InspectJson:
    """Read a file or a bundle folder, and return its contents.

    Raises:
        RequestError: ``path`` is of no known kind.
        BundleError, ModelError, CalibrationError, DataError: the file is damaged.
    """
    if is_bundle(path):
        return _bundle(path)
    if path.suffix == ".onnx":
        return _model(path)
    if path.suffix == ".avqcal":
        return _calibration(path)
    if path.is_file():
        return _encodings(path)
    raise _unknown(path, "a folder without manifest.json" if path.is_dir() else "no such file")


def _unknown(path: Path, seen: str) -> RequestError:
    return RequestError(
        f"{path} is of no known kind",
        seen=seen,
        fix="give a bundle folder, an .onnx model, an .avqcal file, a calibration cache or AIMET encodings",
    )


def tables(contents: InspectJson) -> list[tuple[str, list[dict[str, object]]]]:
    """Return the tables of an encodings file; [] for the other kinds, which have one row per key."""
    if "entries" not in contents:
        return []
    summary: dict[str, object] = {
        "kind": contents["kind"],
        "producer": contents["producer"],
        "digest": contents["digest"],
        "grids": ", ".join(f"{count} {grid}" for grid, count in contents["grids"].items()),
    }
    return [("", [summary]), ("Entries", contents["entries"])]


def _bundle(path: Path) -> InspectJson:
    bundle = open_bundle(path, allow_unaccepted=True)
    bundle.verify()
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    plan = manifest.pop("plan_digest")
    contents = {
        "kind": "bundle",
        **manifest,
        "inputs": [manifest.pop("input")],
        "plan": _plan(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS)) if plan else {},
    }
    return cast(InspectJson, contents)


def _plan(plan_json: bytes, plan_arrays: bytes) -> dict[str, Any]:
    plan = plan_from_parts(plan_json, plan_arrays)
    reasons = {node: f"{p.precision}: {p.reason}" for node, p in plan.precisions.items()}
    return {
        "digest": plan.digest,
        "points": len(plan.points),
        "symmetric": plan.symmetric,
        "precisions": dict(Counter(p.precision for p in plan.precisions.values())),
        "reasons": reasons,
    }


def _model(path: Path) -> InspectJson:
    from avq.builder.graph.model import normalise, read_model
    from avq.builder.lift import is_dynamic, lift_dynamic

    proto = read_model(path)
    model = normalise(lift_dynamic(proto) if is_dynamic(proto) else proto, where=path.name)
    view = model.view
    return {
        "kind": "model",
        "digest": view.digest,
        "accepted": None,
        "inputs": [msgspec.to_builtins(t) for t in view.inputs],
        "outputs": [msgspec.to_builtins(t) for t in view.outputs],
        "preprocess": {},
        "plan": {},
        "parts": {},
        "opset": view.opset,
        "operators": dict(Counter(node.op for node in view.nodes).most_common()),
        "parameters": int(sum(array.size for array in view.constants.values())),
        "messages": list(model.messages),
    }


def _calibration(path: Path) -> InspectJson:
    from avq.builder.calibrate import avqcal

    data = avqcal.read(path)
    return {
        "kind": "calibration",
        "digest": data.digest,
        "accepted": None,
        "inputs": [],
        "outputs": sorted(data.histograms),
        "preprocess": msgspec.json.decode(data.origin.preprocess),
        "plan": {},
        "parts": {},
        "images": len(data.images),
        "origin": data.origin.to_json(),
        "complete": data.shard is None,
    }


def _encodings(path: Path) -> InspectJson:
    """Read a TensorRT calibration cache or AIMET encodings, without the model they belong to."""
    from avq.builder.encodings.read import dialect, is_side_file, listing, parse_side_file, producer

    if not is_side_file(path):
        raise _unknown(path, path.suffix or "a file of no known kind")
    file = parse_side_file(path)
    entries = listing(file)
    return {
        "kind": dialect(file),
        "digest": hashlib.sha256(path.read_bytes()).hexdigest(),
        "accepted": None,
        "inputs": [],
        "outputs": [],
        "preprocess": {},
        "plan": {},
        "parts": {},
        "producer": producer(file),
        "grids": dict(Counter(str(entry["grid"]) for entry in entries)),
        "entries": entries,
    }
