"""What two bundles decided differently: ``avq diff``, and the causes that ``avq replay`` names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from avq.builder.plan_diff import diff_plans
from avq.bundle import PLAN_ARRAYS, PLAN_JSON, Manifest, OpenBundle, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.types import QuantizationPlan

_KINDS = {
    "owner": "owners",
    "point": "quantizers",
    "tie": "ties",
    "precision": "precisions",
    "override": "weights and biases",
    "range": "ranges",
}
# Equal decisions may be measured at other times and packed into other bytes.
_NOT_DECISIONS = frozenset({"created", "metrics", "reasons", "parts", "digest"})


def diff(a: Path, b: Path) -> dict[str, Any]:
    """``differences`` between the manifests' settings and the plans of two bundles; empty when they agree."""
    one, other = (open_bundle(path, allow_unaccepted=True) for path in (a, b))
    settings = list(_settings(one.manifest, other.manifest))
    plans = [asdict(d) for d in diff_plans(_plan(one), _plan(other))]
    return {"a": str(a), "b": str(b), "differences": settings + plans}


def in_short(differences: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The same in a few words: settings by name, entries of the plans counted by what differs in them."""
    settings = [d["where"] for d in differences if d["kind"] == "manifest" and d["where"] != "plan_digest"]
    entries = Counter((d["kind"], d["field"]) for d in differences if d["kind"] not in ("manifest", "graph"))
    counted = [
        " of ".join(filter(None, (field, f"{count} {_KINDS[kind]}")))
        for (kind, field), count in entries.items()
    ]
    return (*settings, *counted)


def _settings(a: Manifest, b: Manifest) -> Iterator[dict[str, str]]:
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
    """The bundle's plan; the empty one for a float bundle."""
    if not bundle.has(PLAN_JSON):
        return QuantizationPlan(graph_digest=bundle.manifest.graph_digest)
    return plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))
