"""``avq inspect``: what a bundle, model, calibration file or side file holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from avq.bundle import PLAN_ARRAYS, PLAN_JSON, is_bundle, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.errors import RequestError


def inspect(path: Path) -> dict[str, Any]:
    """The keys of ``avq inspect --json``.

    Raises RequestError for something that is none of them; the errors of bundles, models, calibration files and
    side files.
    """
    if is_bundle(path):
        return _bundle(path)
    if path.suffix == ".onnx":
        return _model(path)
    if path.suffix == ".avqcal":
        return _calibration(path)
    if path.is_file():
        return _side_file(path)
    raise _unknown(path, "a folder without manifest.json" if path.is_dir() else "no such file")


def _unknown(path: Path, seen: str) -> RequestError:
    return RequestError(
        f"{path} is nothing avq knows",
        seen=seen,
        fix="name a bundle folder, an .onnx model, an .avqcal file, a calibration cache or AIMET encodings",
    )


def tables(facts: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For people: the entries of a side file; everything else is shown as it is."""
    if "entries" not in facts:
        return []
    summary = {key: facts[key] for key in ("kind", "producer", "grids", "digest")}
    grids = ", ".join(f"{count} {grid}" for grid, count in summary.pop("grids").items())
    return [("", [{**summary, "grids": grids}]), ("Entries", facts["entries"])]


def _bundle(path: Path) -> dict[str, Any]:
    bundle = open_bundle(path, allow_unaccepted=True)
    bundle.verify()
    facts: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    plan = facts.pop("plan_digest")
    return {
        "kind": "bundle",
        **facts,
        "inputs": [facts.pop("input")],
        "plan": _plan(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS)) if plan else {},
    }


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


def _model(path: Path) -> dict[str, Any]:
    from avq.builder.graph.model import load_graph

    model = load_graph(path)
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


def _calibration(path: Path) -> dict[str, Any]:
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


def _side_file(path: Path) -> dict[str, Any]:
    """A TensorRT calibration cache or AIMET encodings: what it names, without a graph to match."""
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
