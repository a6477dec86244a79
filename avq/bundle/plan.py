"""A quantization plan as two parts of a bundle: plan.json to read and compare, plan.npz for the arrays."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from avq.bundle.npz import read_npz
from avq.errors import AvqError, PlanError
from avq.types import AnyArray, Edge, NodePrecision, QuantizationPlan, QuantPoint

PLAN_FORMAT = 1


def plan_to_parts(plan: QuantizationPlan) -> tuple[bytes, bytes]:
    """Encode a plan as (plan.json, plan.npz). The same plan always gives the same bytes.

    Raises PlanError when an axis, size or range is not a plain Python number.
    """
    points = sorted(plan.points, key=lambda point: point.edge)
    overrides = sorted(plan.overrides)
    body = {
        "format": PLAN_FORMAT,
        "digest": plan.digest,
        "graph_digest": plan.graph_digest,
        "owner": plan.owner,
        "owner_version": plan.owner_version,
        "points": [point.settings() for point in points],
        "ties": sorted([_edge_to_json(e) for e in sorted(tie)] for tie in plan.ties),
        "precisions": {n: _precision_to_json(p) for n, p in sorted(plan.precisions.items())},
        "overrides": overrides,
        "ranges": {name: list(bounds) for name, bounds in sorted(plan.ranges.items())},
    }
    arrays: dict[str, AnyArray] = {}
    for n, point in enumerate(points):
        arrays[f"scale_{n}"], arrays[f"zero_point_{n}"] = point.scale, point.zero_point
    for n, name in enumerate(overrides):
        arrays.update(_override_to_arrays(n, np.asarray(plan.overrides[name])))
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    return msgspec.json.format(_encoded(body), indent=1) + b"\n", packed.getvalue()


def plan_from_parts(plan_json: bytes, plan_npz: bytes) -> QuantizationPlan:
    """Decode a plan, equal in digest. Never unpickles.

    Raises PlanError when the parts are broken, do not belong together, or the digest does not check.
    """
    try:
        body = msgspec.json.decode(plan_json)
        plan = _plan(body, read_npz(plan_npz))
    except AvqError:
        raise
    except Exception as error:  # a damaged part may break anything on the way
        raise _broken(f"{type(error).__name__}: {error}") from None
    if plan.digest != body["digest"]:
        raise _broken(f"digest {plan.digest[:12]}, written {str(body['digest'])[:12]}")
    return plan


def _encoded(body: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except TypeError as error:
        raise PlanError(
            "the plan holds values that are not plain Python numbers or text",
            seen=str(error),
            fix="a strategy must convert numpy numbers with int() and float()",
        ) from None


def _plan(body: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> QuantizationPlan:
    if body["format"] != PLAN_FORMAT:
        raise _broken(f"format {body['format']!r}, this avq reads {PLAN_FORMAT}")
    return QuantizationPlan(
        graph_digest=body["graph_digest"],
        points=tuple(
            _point(settings, arrays[f"scale_{n}"], arrays[f"zero_point_{n}"])
            for n, settings in enumerate(body["points"])
        ),
        ties=tuple(frozenset(Edge(*edge) for edge in tie) for tie in body["ties"]),
        precisions={name: NodePrecision(*pair) for name, pair in body["precisions"].items()},
        overrides={name: _override(n, arrays) for n, name in enumerate(body["overrides"])},
        ranges={name: (low, high) for name, (low, high) in body["ranges"].items()},
        owner=body["owner"],
        owner_version=body["owner_version"],
    )


def _override_to_arrays(n: int, array: AnyArray) -> dict[str, AnyArray]:
    """Encode an array; weights with few levels per channel as a table of levels and byte indices."""
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")  # so that -0.0 stays -0.0
    if array.ndim < 2 or array.size == 0 or array.dtype.kind != "f":
        return {f"override_{n}": array}
    rows = [np.unique(row, return_inverse=True) for row in bits.reshape(len(bits), -1)]
    levels = max(len(values) for values, _ in rows)
    if levels > 256 or levels * array.dtype.itemsize * len(rows) >= array.nbytes // 2:
        return {f"override_{n}": array}
    palette = np.stack([np.pad(values, (0, levels - len(values))) for values, _ in rows])
    chosen = np.stack([index.reshape(-1) for _, index in rows]).astype(np.uint8)
    return {
        f"override_{n}_levels": palette.view(array.dtype),
        f"override_{n}_chosen": chosen.reshape(array.shape),
    }


def _override(n: int, arrays: Mapping[str, AnyArray]) -> AnyArray:
    if f"override_{n}" in arrays:
        return arrays[f"override_{n}"]
    chosen, levels = arrays[f"override_{n}_chosen"], arrays[f"override_{n}_levels"]
    rows = np.take_along_axis(levels, chosen.reshape(len(chosen), -1).astype(np.int64), axis=1)
    return rows.reshape(chosen.shape)


def _point(settings: Mapping[str, Any], scale: AnyArray, zero_point: AnyArray) -> QuantPoint:
    rest = dict(settings)
    edge = Edge(rest.pop("tensor"), rest.pop("node"), rest.pop("input_index"))
    return QuantPoint(edge=edge, scale=scale, zero_point=zero_point, **rest)


def _precision_to_json(chosen: NodePrecision) -> list[str]:
    side = [] if chosen.float_side == "fp32" else [chosen.float_side]
    return [chosen.precision, chosen.reason, *side]


def _edge_to_json(edge: Edge) -> list[str | int]:
    return [edge.tensor, edge.node, edge.input_index]


def _broken(seen: str) -> PlanError:
    return PlanError("the plan is damaged", seen=seen, fix="copy or build the bundle again")
