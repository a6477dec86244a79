"""Differences between two plans, and between two bundles."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import msgspec
import numpy as np

from avq.bundle import PLAN_ARRAYS, PLAN_JSON, Manifest, OpenBundle, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.types import AnyArray, Edge, QuantizationPlan, QuantPoint


class DiffRow(TypedDict):
    """One difference; ``kind`` is "manifest" for a setting, else that of a ``PlanDifference``."""

    kind: str
    where: str
    field: str
    a: str
    b: str


class DiffJson(TypedDict):
    """Object of ``avq diff --json``: paths of the bundles, and their differences."""

    a: str
    b: str
    differences: list[DiffRow]


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """One line of ``avq diff``.

    Attributes:
        kind: "graph", "owner", "point", "tie", "precision", "override" or "range".
        where: edge, node or tensor.
        field: the setting that differs; "" when the whole entry is on one side only.
        a, b: the values, printable; "" where absent.
    """

    kind: str
    where: str
    field: str
    a: str
    b: str

    def row(self) -> DiffRow:
        return {"kind": self.kind, "where": self.where, "field": self.field, "a": self.a, "b": self.b}


def diff_plans(a: QuantizationPlan, b: QuantizationPlan) -> list[PlanDifference]:
    """Return every difference, in a fixed order; empty exactly when the digests are equal."""
    return list(_differences(a, b))


def _differences(a: QuantizationPlan, b: QuantizationPlan) -> Iterator[PlanDifference]:
    if a.graph_digest != b.graph_digest:
        yield PlanDifference("graph", "", "digest", a.graph_digest, b.graph_digest)
    if (a.owner, a.owner_version) != (b.owner, b.owner_version):
        yield PlanDifference("owner", "", "", f"{a.owner} {a.owner_version}", f"{b.owner} {b.owner_version}")
    yield from _points(a, b)
    ties = [{", ".join(sorted(str(e) for e in tie)): "tied" for tie in plan.ties} for plan in (a, b)]
    yield from _entries("tie", *ties)
    choices = [{n: f"{p.precision}: {p.reason}" for n, p in plan.precisions.items()} for plan in (a, b)]
    yield from _entries("precision", *choices)
    contents = [{n: _array(v) for n, v in plan.overrides.items()} for plan in (a, b)]
    yield from _entries("override", *contents)
    ranges = [{n: repr(v) for n, v in plan.ranges.items()} for plan in (a, b)]
    yield from _entries("range", *ranges)


def _points(a: QuantizationPlan, b: QuantizationPlan) -> Iterator[PlanDifference]:
    for edge in sorted(a.by_edge.keys() | b.by_edge.keys()):
        yield from point_differences(edge, a.by_edge.get(edge), b.by_edge.get(edge))


def point_differences(edge: Edge, a: QuantPoint | None, b: QuantPoint | None) -> Iterator[PlanDifference]:
    """Yield the settings that differ between two points of one edge; one entry where only one side has a point."""
    if a is None or b is None:
        if a is not b:
            yield PlanDifference("point", str(edge), "", _brief(a), _brief(b))
        return
    left, right = _fields(a), _fields(b)
    for name in left:
        if left[name] != right[name]:
            yield PlanDifference("point", str(edge), name, left[name], right[name])


def _entries(kind: str, a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[PlanDifference]:
    for where in sorted(a.keys() | b.keys()):
        if a.get(where) != b.get(where):
            yield PlanDifference(kind, where, "", a.get(where, ""), b.get(where, ""))


def _fields(point: QuantPoint) -> dict[str, str]:
    settings = {k: str(v) for k, v in point.settings().items() if k not in ("tensor", "node", "input_index")}
    return {**settings, "scale": _array(point.scale), "zero_point": _array(point.zero_point)}


def _brief(point: QuantPoint | None) -> str:
    return "" if point is None else f"{point.bits} bits {point.mode}, scale {_array(point.scale)}"


def _array(values: object) -> str:
    """Print one number exactly; more as shape, extremes and a hash that differs on any change."""
    array = np.asarray(values)
    if array.size == 1:
        return repr(array.reshape(()).item())
    digest = _hash(array)
    if array.size == 0:
        return f"{array.dtype}{list(array.shape)} #{digest}"
    return f"{array.dtype}{list(array.shape)} {array.min():.6g}..{array.max():.6g} #{digest}"


def _hash(array: AnyArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:8]


# Differences of two bundles: ``avq diff``, and the causes in ``avq replay``.

_KINDS = {
    "owner": "owners",
    "point": "quantizers",
    "tie": "ties",
    "precision": "precisions",
    "override": "weights and biases",
    "range": "ranges",
}
# Equal decisions can have other times of measurement and other bytes of packed parts.
_NOT_DECISIONS = frozenset({"created", "metrics", "reasons", "parts", "digest"})


def diff(a: Path, b: Path) -> DiffJson:
    """Compare the manifests' settings and the plans of two bundles; return the object of ``avq diff --json``."""
    one, other = (open_bundle(path, allow_unaccepted=True) for path in (a, b))
    settings = list(_settings(one.manifest, other.manifest))
    plans = [difference.row() for difference in diff_plans(_plan(one), _plan(other))]
    return {"a": str(a), "b": str(b), "differences": settings + plans}


def summarise(differences: Sequence[DiffRow]) -> tuple[str, ...]:
    """Summarise differences: settings by name, entries of the plans counted by kind and field."""
    settings = [d["where"] for d in differences if d["kind"] == "manifest" and d["where"] != "plan_digest"]
    entries = Counter((d["kind"], d["field"]) for d in differences if d["kind"] not in ("manifest", "graph"))
    counted = [
        " of ".join(filter(None, (field, f"{count} {_KINDS[kind]}")))
        for (kind, field), count in entries.items()
    ]
    return (*settings, *counted)


def _settings(a: Manifest, b: Manifest) -> Iterator[DiffRow]:
    left, right = msgspec.to_builtins(a), msgspec.to_builtins(b)
    for name in left:
        if name not in _NOT_DECISIONS and left[name] != right[name]:
            yield {
                "kind": "manifest",
                "where": name,
                "field": "",
                "a": str(left[name]),
                "b": str(right[name]),
            }


def _plan(bundle: OpenBundle) -> QuantizationPlan:
    """Return the bundle's plan; the empty one for a float bundle."""
    if not bundle.has(PLAN_JSON):
        return QuantizationPlan(graph_digest=bundle.manifest.graph_digest)
    return plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
