"""Parts of one bundle's plan in the place of another's: plans are data, so any mixture of two can be served.

The float network is read back from the bundles' models. Numbers that lie on a grid are rounded onto it again exactly,
so a bundle taken apart and put together answers as it did.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx

from avq.builder.graph.view import view_of
from avq.builder.lift import lift
from avq.builder.lower import lower
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
from avq.errors import RequestError
from avq.hookspecs import Engine
from avq.types import AnyArray, Edge, GraphView, QuantizationPlan, QuantPoint, SessionOptions

_ASYMMETRIC, _DEFAULT = "asymmetric", "s8"


@dataclass(frozen=True)
class OpenedPlan:
    """One of the two bundles, taken apart."""

    path: Path
    manifest: Manifest
    plan: QuantizationPlan
    proto: onnx.ModelProto
    view: GraphView
    model: bytes


@dataclass(frozen=True)
class Difference:
    """One entry that the two plans say differently."""

    where: str
    field: str
    good: str
    bad: str


@dataclass(frozen=True)
class Group:
    """Operators whose decisions are exchanged together.

    Attributes:
        name: of its first operator in the graph.
        nodes: all of them.
        edges, constants: what is taken from the other side with them.
        differences: what the sides say differently; none where they agree.
    """

    name: str
    nodes: tuple[str, ...]
    edges: frozenset[Edge]
    constants: frozenset[str]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class PlanMixer:
    """Two bundles of one float network.

    Attributes:
        groups: all that either plan decides about, in graph order.
    """

    good: OpenedPlan
    bad: OpenedPlan
    groups: tuple[Group, ...]

    @property
    def differing(self) -> tuple[Group, ...]:
        return tuple(group for group in self.groups if group.differences)

    def write(self, folder: Path, from_bad: Collection[str]) -> Path:
        """A bundle of the good plan with the groups named in ``from_bad`` as the bad one has them."""
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
        """The good plan with those groups' points, precisions and constants from the bad side."""
        taken = [group for group in self.groups if group.name in from_bad]
        edges = {edge for group in taken for edge in group.edges}
        nodes = {node for group in taken for node in group.nodes}
        constants = {name for group in taken for name in group.constants}
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

    def _served_by(self) -> Manifest:
        """The bad bundle's way of serving, unless only the good one's can say both plans."""
        good, bad = self.good.manifest, self.bad.manifest
        both = [side for side in (bad, good) if side.engine.encoding] or [bad]
        return next((side for side in both if side.engine.encoding == _ASYMMETRIC), both[0])


def open_plan_mixer(good: Path, bad: Path, reference: Engine) -> PlanMixer:
    """Take two bundles apart, and prove that each answers the same put together again.

    Args:
        reference: what both are asked in for the proof, its optimisations off.

    Raises:
        RequestError: they are not of one float network, or cannot be taken apart. BundleError: one is damaged.
    """
    sides = _side(good), _side(bad)
    digests = [side.manifest.graph_digest for side in sides]
    if digests[0] != digests[1]:
        raise RequestError(
            "the two bundles are of different networks, so their plans cannot be exchanged",
            seen=f"{good}: {digests[0][:12]}, {bad}: {digests[1][:12]}",
            fix="build both from the same float model; avq replay --baseline compares different models",
        )
    structures = [_structure(side.view) for side in sides]
    if structures[0] != structures[1] or sides[0].view.constants.keys() != sides[1].view.constants.keys():
        raise _not_apart(bad, "its operators are not those of the other bundle once quantizers are taken out")
    exchange = PlanMixer(*sides, groups=_groups(*sides))
    everything = [group.name for group in exchange.differing]
    for side, taken in ((sides[0], []), (sides[1], everything)):
        again = lower(sides[0].proto, exchange.plan(taken), side.manifest.engine.encoding or _DEFAULT)
        if not _same_answers(side.model, again, side.view, reference):
            raise _not_apart(side.path, "put together again it answers differently")
    return exchange


def write_float_bundle(path: Path, folder: Path) -> Path:
    """The bundle ``path`` with its quantizers taken out, in float32: weights as the plan rounded them.

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


def _not_apart(path: Path, seen: str) -> RequestError:
    return RequestError(
        f"the bundle {path} cannot be taken apart",
        seen=seen,
        fix="bisect bundles that this avq built with integers and float32; avq diff lists what differs",
    )


def _structure(view: GraphView) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    """Whatever order the file has: writers may sort."""
    return sorted((node.name, node.op, node.inputs, node.outputs) for node in view.nodes)


def _same_answers(one: bytes, other: bytes, view: GraphView, reference: Engine) -> bool:
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
    found: list[Difference] = []
    for edge in mine:
        found += _point_differences(edge, good.plan.by_edge.get(edge), bad.plan.by_edge.get(edge))
    for node in nodes:
        a, b = (plan.precision_of(node).precision for plan in (good.plan, bad.plan))
        if a != b:
            found.append(Difference(node, "precision", a, b))
    # weights that moved with their grid are told by the grid
    told = {edge.tensor for edge in mine if found}
    found += [Difference(name, "values", "", "differ") for name in constants if name not in told]
    return Group(nodes[0], tuple(nodes), frozenset(mine), frozenset(constants), tuple(found))


def _point_differences(edge: Edge, a: QuantPoint | None, b: QuantPoint | None) -> list[Difference]:
    if a is None or b is None:
        return [Difference(str(edge), "quantizer", _brief(a), _brief(b))] if a is not b else []
    left, right = _fields(a), _fields(b)
    return [Difference(str(edge), key, left[key], right[key]) for key in left if left[key] != right[key]]


def _fields(point: QuantPoint) -> dict[str, str]:
    settings = {k: str(v) for k, v in point.settings().items() if k not in ("tensor", "node", "input_index")}
    return {"scale": _numbers(point.scale), "zero_point": _numbers(point.zero_point), **settings}


def _brief(point: QuantPoint | None) -> str:
    return "none" if point is None else f"{point.bits} bits, scale {_numbers(point.scale)}"


def _numbers(values: AnyArray) -> str:
    flat = np.ravel(values)
    if flat.size == 1:
        return f"{flat[0]:.9g}"
    return f"{flat.size} from {flat.min():.6g} to {flat.max():.6g}, mean {flat.mean():.9g}"


def _readers(view: GraphView, edge: Edge) -> tuple[str, ...]:
    if edge.node:
        return (edge.node,)
    return tuple(node.name for node, _ in view.consumers(edge.tensor))


def _joined(entities: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """node -> one node that stands for all it is joined with."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for nodes in entities:
        for node in nodes:
            parent[root(node)] = root(nodes[0])
    return {node: root(node) for node in list(parent)}


__all__ = ["Difference", "PlanMixer", "Group", "OpenedPlan", "open_plan_mixer", "write_float_bundle"]
