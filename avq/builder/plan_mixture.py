"""Mixtures of two bundles' plans: groups of operators from one plan, the rest from the other.

The float network is read back from the bundles' models. Numbers on a grid are rounded onto it again exactly, so a
bundle that is lifted and lowered again has the same outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import onnx

from avq.builder.graph.view import view_of
from avq.builder.lift import lift
from avq.builder.lower import lower
from avq.builder.plan_diff import PlanDifference, point_differences
from avq.bundle import (
    MODEL,
    PLAN_ARRAYS,
    PLAN_JSON,
    Manifest,
    OpenBundle,
    open_bundle,
    staging_folder,
    write_bundle,
)
from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.errors import PlanError, RequestError
from avq.hookspecs import Engine
from avq.types import AnyArray, Edge, GraphView, QuantizationPlan, QuantPoint, SessionOptions

_ASYMMETRIC, _DEFAULT = "asymmetric", "s8"
_NUMBERS = ("scale", "zero_point")


@dataclass(frozen=True)
class OpenedPlan:
    """A bundle with its plan, its float network and its model."""

    path: Path
    manifest: Manifest
    plan: QuantizationPlan
    proto: onnx.ModelProto
    view: GraphView
    model: bytes


@dataclass(frozen=True)
class Group:
    """Operators whose decisions are swapped together.

    Attributes:
        name: of its first operator in the graph.
        nodes: all of them.
        edges, constants: swapped with them.
        differences: between the two plans, good first; none where they agree.
    """

    name: str
    nodes: tuple[str, ...]
    edges: frozenset[Edge]
    constants: frozenset[str]
    differences: tuple[PlanDifference, ...]


@dataclass(frozen=True)
class PlanMixer:
    """Two bundles of one float network.

    Attributes:
        groups: every group with a decision in either plan, in graph order.
    """

    good: OpenedPlan
    bad: OpenedPlan
    groups: tuple[Group, ...]

    @property
    def differing(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.differences)

    def write(self, folder: Path, from_bad: Collection[str]) -> Path:
        """Write a bundle of the good plan, with the groups named in ``from_bad`` from the bad plan."""
        plan = self.plan(from_bad)
        engine = self._served_by()
        model = lower(self.good.proto, plan, engine.engine.encoding or _DEFAULT)
        parts: dict[str, bytes | Path] = {MODEL: model}
        if plan.points:
            parts[PLAN_JSON], parts[PLAN_ARRAYS] = plan_to_parts(plan)
        manifest = msgspec.structs.replace(engine, plan_digest=plan.digest if plan.points else "", parts={})
        write_bundle(staging_folder(folder), folder, manifest, parts)
        return folder

    def plan(self, from_bad: Collection[str]) -> QuantizationPlan:
        """Return the good plan with the points, precisions and constants of those groups from the bad one."""
        swapped = [group for group in self.groups if group.name in from_bad]
        edges = {edge for group in swapped for edge in group.edges}
        nodes = {node for group in swapped for node in group.nodes}
        constants = {name for group in swapped for name in group.constants}
        good, bad = self.good.plan, self.bad.plan
        points = [p for p in good.points if p.edge not in edges] + [p for p in bad.points if p.edge in edges]
        precisions = {n: p for n, p in good.precisions.items() if n not in nodes}
        precisions |= {n: p for n, p in bad.precisions.items() if n in nodes}
        ties = {tie for tie in good.ties if not tie & edges} | {tie for tie in bad.ties if tie & edges}
        overrides = {name: self.bad.view.constants[name] for name in constants}
        return QuantizationPlan(
            graph_digest=self.good.view.digest,
            points=tuple(points),
            ties=tuple(sorted(ties, key=sorted)),
            precisions=precisions,
            overrides=overrides,
            ranges=good.ranges,
            owner="avq",
            owner_version="exchange",
        )

    @property
    def outside(self) -> tuple[str, ...]:
        """What differs between the manifests and is no part of a plan, by manifest key."""
        good, bad = self.good.manifest, self.bad.manifest
        pairs = {
            "preprocess": (good.preprocess, bad.preprocess),
            "decoder": (good.decoder, bad.decoder),
            "class_names": (good.class_names, bad.class_names),
            "input": (good.input, bad.input),
            "engine": (good.engine.name, bad.engine.name),
            "engine precision": (_float_part(good), _float_part(bad)),
        }
        if good.engine.encoding and bad.engine.encoding:  # a float model has none
            pairs["encoding"] = (good.engine.encoding, bad.engine.encoding)
        return tuple(name for name, (a, b) in pairs.items() if a != b)

    def _served_by(self) -> Manifest:
        """Return the bad bundle's manifest, unless only the good one's encoding can express both plans."""
        good, bad = self.good.manifest, self.bad.manifest
        both = [side for side in (bad, good) if side.engine.encoding] or [bad]
        return next((side for side in both if side.engine.encoding == _ASYMMETRIC), both[0])


def _float_part(manifest: Manifest) -> str:
    """Return the number format of the float operators."""
    return manifest.engine.precision.removeprefix("int8+").removeprefix("int8") or "f32"


def open_plan_mixer(good: Path, bad: Path, reference: Engine) -> PlanMixer:
    """Open two bundles, and prove that each has the same outputs after lifting and lowering.

    Args:
        reference: runs both for the proof, without optimisations.

    Raises:
        RequestError: they are not of one float network, or cannot be lifted.
        BundleError: one is damaged.
    """
    sides = _side(good), _side(bad)
    digests = [side.manifest.graph_digest for side in sides]
    if digests[0] != digests[1]:
        raise RequestError(
            "the two bundles are of different networks, so their plans cannot be mixed",
            seen=f"{good}: {digests[0][:12]}, {bad}: {digests[1][:12]}",
            fix="build both from the same float model; avq replay --baseline compares different models",
        )
    structures = [_structure(side.view) for side in sides]
    if structures[0] != structures[1] or sides[0].view.constants.keys() != sides[1].view.constants.keys():
        raise _cannot_lift(bad, "without quantizers its operators differ from the other bundle's")
    mixer = PlanMixer(*sides, groups=_groups(*sides))
    everything = [group.name for group in mixer.differing]
    for side, taken in ((sides[0], []), (sides[1], everything)):
        try:
            again = lower(sides[0].proto, mixer.plan(taken), side.manifest.engine.encoding or _DEFAULT)
        except PlanError as error:
            seen = f"its plan does not fit the model without quantizers: {error.what[:120]}"
            raise _cannot_lift(side.path, seen) from None
        if not _same_outputs(side.model, again, side.view, reference):
            raise _cannot_lift(side.path, "lowered again, its outputs differ")
    return mixer


def write_float_bundle(path: Path, folder: Path) -> Path:
    """Write the bundle ``path`` without quantizers, in float32; weights stay as the plan rounded them.

    Raises ModelError when its model cannot be read back, BundleError when it is damaged.
    """
    side = _side(path)
    engine = msgspec.structs.replace(
        side.manifest.engine, precision="f32", float_precision="f32", encoding=""
    )
    manifest = msgspec.structs.replace(side.manifest, engine=engine, plan_digest="", parts={})
    write_bundle(staging_folder(folder), folder, manifest, {MODEL: side.proto.SerializeToString()})
    return folder


def _side(path: Path) -> OpenedPlan:
    bundle = open_bundle(path, allow_unaccepted=True)
    model = bundle.read(MODEL)
    proto, _ = lift(onnx.load_model_from_string(model))
    view = view_of(proto)
    return OpenedPlan(path, bundle.manifest, _plan_of(bundle, view), proto, view, model)


def _plan_of(bundle: OpenBundle, view: GraphView) -> QuantizationPlan:
    if not bundle.has(PLAN_JSON):
        return QuantizationPlan(graph_digest=view.digest)
    return plan_from_parts(bundle.read(PLAN_JSON), bundle.read(PLAN_ARRAYS))


def _cannot_lift(path: Path, seen: str) -> RequestError:
    return RequestError(
        f"the bundle {path} cannot be lifted to its float network",
        seen=seen,
        fix="bisect bundles that this avq built with integers and float32; avq diff lists the differences",
    )


def _structure(view: GraphView) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """Return the operators in an order that does not depend on the file: writers may sort."""
    return sorted((node.name, node.op, node.inputs, node.outputs) for node in view.nodes)


def _same_outputs(one: bytes, other: bytes, view: GraphView, reference: Engine) -> bool:
    noise = np.random.default_rng(0)
    feeds = {tensor.name: noise.integers(0, 255, tensor.shape).astype(tensor.dtype) for tensor in view.inputs}
    answers = []
    for model in (one, other):
        session = reference.open(model, SessionOptions(optimise=False))
        try:
            answers.append({name: np.array(value) for name, value in session.run(feeds).items()})
        finally:
            session.close()
    return all(np.array_equal(answers[0][name], answers[1][name], equal_nan=True) for name in answers[0])


def _same(a: AnyArray, b: AnyArray) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _groups(good: OpenedPlan, bad: OpenedPlan) -> tuple[Group, ...]:
    """Nodes that share a tensor-wide point, a tied scale or a constant that differs are one group."""
    changed = {
        name for name, value in good.view.constants.items() if not _same(value, bad.view.constants[name])
    }
    edges = sorted(good.plan.by_edge.keys() | bad.plan.by_edge.keys())
    entities = [*(_readers(good.view, edge) for edge in edges)]
    entities += [
        tuple(node for edge in tie for node in _readers(good.view, edge))
        for plan in (good.plan, bad.plan)
        for tie in plan.ties
    ]
    entities += [_readers(good.view, Edge(name)) for name in changed]
    entities += [(node,) for plan in (good.plan, bad.plan) for node in plan.precisions]
    root = _joined(entities)
    members: dict[str, list[str]] = {}
    for node in good.view.nodes:
        if node.name in root:
            members.setdefault(root[node.name], []).append(node.name)
    return tuple(_group(nodes, root, edges, changed, good, bad) for nodes in members.values())


def _group(
    nodes: list[str],
    root: Mapping[str, str],
    edges: Iterable[Edge],
    changed: Collection[str],
    good: OpenedPlan,
    bad: OpenedPlan,
) -> Group:
    own = root[nodes[0]]
    mine = [edge for edge in edges if own in {root[node] for node in _readers(good.view, edge)}]
    constants = [name for name in changed if own in {root[n] for n in _readers(good.view, Edge(name))}]
    differences: list[PlanDifference] = []
    for edge in mine:
        differences += _point_differences(edge, good.plan.by_edge.get(edge), bad.plan.by_edge.get(edge))
    for node in nodes:
        a, b = (plan.precision_of(node).precision for plan in (good.plan, bad.plan))
        if a != b:
            differences.append(PlanDifference("precision", node, "precision", a, b))
    # weights that moved with their grid are listed by the grid
    listed = {edge.tensor for edge in mine if differences}
    differences += [
        PlanDifference("override", name, "values", "", "differ") for name in constants if name not in listed
    ]
    return Group(nodes[0], tuple(nodes), frozenset(mine), frozenset(constants), tuple(differences))


def _point_differences(edge: Edge, good: QuantPoint | None, bad: QuantPoint | None) -> list[PlanDifference]:
    """Return the differences of one point, the scale first; a point of one side only is one "quantizer" entry."""
    differences = sorted(point_differences(edge, good, bad), key=lambda d: d.field not in _NUMBERS)
    return [
        d if d.field else replace(d, field="quantizer", a=d.a or "none", b=d.b or "none") for d in differences
    ]


def _readers(view: GraphView, edge: Edge) -> tuple[str, ...]:
    if edge.node:
        return (edge.node,)
    return tuple(node.name for node, _ in view.consumers(edge.tensor))


def _joined(entities: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Map each node to one node that represents its group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for nodes in entities:
        for node in nodes:
            parent[root(node)] = root(nodes[0])
    return {node: root(node) for node in list(parent)}


__all__ = ["PlanMixer", "Group", "OpenedPlan", "open_plan_mixer", "write_float_bundle"]
