"""What every quantization strategy must do; run it in the tests of your own strategy.

from avq.contract.quantizer_suite import check_quantizer
def test_contract(graph, bench):
    check_quantizer(MyQuantizer(), graph, bench)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from avq.bundle.plan import plan_from_parts, plan_to_parts
from avq.errors import PluginError, RequestError
from avq.hookspecs import Quantizer, Workbench
from avq.plugins import validate_options
from avq.types import Edge, GraphView, QuantizationPlan

_INTEGER = ("int8", "int4")


def check_quantizer(
    quantizer: Quantizer, graph: GraphView, bench: Workbench, options: Mapping[str, str] | None = None
) -> QuantizationPlan:
    """Plan twice and check both plans; returns the plan.

    Args:
        quantizer: the strategy under test.
        graph: a float graph it should be able to plan for.
        bench: any workbench; the host's, or one of your own.
        options: as from ``--option k=v``; the defaults when None.

    Raises PluginError at the first rule the strategy breaks.
    """
    checked = _check_options(quantizer, options or {})
    constants, files = _constants(graph), _files()
    plan = quantizer.plan(graph, bench, checked)
    again = quantizer.plan(graph, bench, checked)
    _require(plan.digest == again.digest, quantizer, "the same inputs give the same plan", "digests differ")
    _require(_constants(graph) == constants, quantizer, "the graph is only read", "a constant changed")
    _require(_files() == files, quantizer, "planning writes no files", str(sorted(_files() - files)))
    _check_binding(quantizer, plan, graph)
    _check_names(quantizer, plan, graph)
    _check_bench(quantizer, plan, bench)
    _require(
        plan_from_parts(*plan_to_parts(plan)).digest == plan.digest,
        quantizer,
        "the plan survives plan.json and plan.npz",
        "the digest changed",
    )
    return plan


def _check_options(quantizer: Quantizer, given: Mapping[str, str]) -> BaseModel:
    _require(bool(quantizer.name), quantizer, "a strategy has a name", repr(quantizer.name))
    _require(bool(quantizer.version), quantizer, "a strategy has a version", repr(quantizer.version))
    try:
        validate_options(quantizer, {"no such option": "1"})
    except RequestError:
        return validate_options(quantizer, given)
    raise _broken(quantizer, "unknown options are refused", "'no such option' was taken")


def _check_binding(quantizer: Quantizer, plan: QuantizationPlan, graph: GraphView) -> None:
    _require(
        plan.graph_digest == graph.digest, quantizer, "the plan is bound to its graph", plan.graph_digest
    )
    _require(plan.owner == quantizer.name, quantizer, "the plan names its owner", repr(plan.owner))
    _require(
        plan.owner_version == quantizer.version, quantizer, "the plan names its version", plan.owner_version
    )


def _check_names(quantizer: Quantizer, plan: QuantizationPlan, graph: GraphView) -> None:
    edges = [*(p.edge for p in plan.points), *(edge for tie in plan.ties for edge in tie)]
    for edge in edges:
        _require(_exists(edge, graph), quantizer, "edges are the graph's own", str(edge))
    nodes = {node.name for node in graph.nodes}
    strange = sorted(set(plan.precisions) - nodes)
    _require(not strange, quantizer, "precisions are of known nodes", ", ".join(strange))
    unexplained = sorted(name for name, p in plan.precisions.items() if not p.reason)
    _require(not unexplained, quantizer, "every precision has a reason", ", ".join(unexplained))
    for name, array in plan.overrides.items():
        fits = name in graph.constants and graph.constants[name].shape == np.shape(array)
        _require(fits, quantizer, "overrides fit constants of the graph", name)


def _check_bench(quantizer: Quantizer, plan: QuantizationPlan, bench: Workbench) -> None:
    if bench.symmetric_only:
        crooked = [str(p.edge) for p in plan.points if not p.symmetric]
        _require(
            not crooked, quantizer, "the plan is symmetric where the target asks", ", ".join(crooked[:4])
        )
    for name in bench.keep_float:
        own = [str(p.edge) for p in plan.points if p.edge.node == name]
        _require(not own, quantizer, "nodes kept float have no points of their own", ", ".join(own))
        chosen = plan.precision_of(name).precision
        _require(chosen not in _INTEGER, quantizer, "nodes kept float stay float", f"{name}: {chosen}")


def _exists(edge: Edge, graph: GraphView) -> bool:
    if not edge.node:
        return edge.tensor in graph.tensors or edge.tensor in graph.constants
    return any(n.name == edge.node and i == edge.input_index for n, i in graph.consumers(edge.tensor))


def _constants(graph: GraphView) -> str:
    sha = hashlib.sha256()
    for name in sorted(graph.constants):
        sha.update(name.encode() + np.ascontiguousarray(graph.constants[name]).tobytes())
    return sha.hexdigest()


def _files() -> set[str]:
    """What lies in the working directory, where stray writes would land."""
    return {path.name for path in Path().iterdir()}


def _require(holds: bool, quantizer: Quantizer, what: str, seen: str) -> None:
    if not holds:
        raise _broken(quantizer, what, seen)


def _broken(quantizer: Quantizer, what: str, seen: str) -> PluginError:
    return PluginError(f"the strategy {quantizer.name!r} breaks its contract: {what}", seen=seen)
