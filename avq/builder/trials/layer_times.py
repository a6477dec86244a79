"""A runtime's layers, fused and named as it likes, as times of the float graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from avq.builder.holdout import HoldoutSet
from avq.builder.lower import lower
from avq.builder.request import Request
from avq.builder.trials.bench import FLOAT, Candidate
from avq.errors import AvqError
from avq.hookspecs import ProfilingEngine
from avq.toolbox.assemble import COMPUTE_OPS
from avq.types import GraphView, LayerTime, QuantizationPlan, SessionOptions

_QUANTIZERS = ("/QuantizeLinear", "/DequantizeLinear")


def by_node(layers: Sequence[LayerTime], graph: GraphView) -> dict[str, int]:
    """node name -> ns.

    A fused layer's time stands at its first weighted node, else at its first node. Layers without a node of
    the graph (format changes, quantizers) are added to the next one that has one: the reader they serve.
    """
    known = {node.name: node.op for node in graph.nodes}
    times: dict[str, int] = {}
    waiting, last = 0, ""
    for layer in layers:
        mine = [name for name in _names(layer) if name in known]
        if not mine:
            waiting += layer.ns
            continue
        last = next((name for name in mine if known[name] in COMPUTE_OPS), mine[0])
        times[last] = times.get(last, 0) + layer.ns + waiting
        waiting = 0
    if last:
        times[last] += waiting
    return times


def _names(layer: LayerTime) -> Iterator[str]:
    """Names of nodes as the file spelled them: runtimes append their own steps to them."""
    for name in layer.nodes:
        if not any(mark in name for mark in _QUANTIZERS):
            yield name
            yield name.rpartition("/")[0]


# Where an engine spends its time, float against the plan as it is served, layer by layer.


@dataclass(frozen=True)
class LayerCosts:
    """Nanoseconds of one inference on one engine, the two models taking turns.

    Attributes:
        float_ns, served_ns: by node of the float graph; a fused layer stands at its first weighted node.
        float_conversions_ns, served_conversions_ns: layers the runtime added between those.
    """

    float_ns: Mapping[str, int]
    served_ns: Mapping[str, int]
    float_conversions_ns: int = 0
    served_conversions_ns: int = 0

    def added_ms(self, nodes: Sequence[str]) -> float:
        """What the plan adds to the time of these nodes; negative where it is faster."""
        return sum(self.served_ns.get(n, 0) - self.float_ns.get(n, 0) for n in nodes) / 1e6

    @property
    def added_conversions_ms(self) -> float:
        return (self.served_conversions_ns - self.float_conversions_ns) / 1e6


def layer_costs(
    request: Request,
    proto: onnx.ModelProto,
    graph: GraphView,
    plan: QuantizationPlan,
    candidate: Candidate,
    holdout: HoldoutSet,
) -> LayerCosts | None:
    """Both models on the candidate's engine; None where it does not tell, or for the float model."""
    engine = request.float_engines.get(candidate.engine)
    if not isinstance(engine, ProfilingEngine) or candidate.encoding == FLOAT or not holdout.inputs:
        return None
    models = [proto.SerializeToString(), lower(proto, plan, candidate.encoding)]
    options = SessionOptions(threads=request.recipe.threads, precision=candidate.precision)
    try:
        in_float, served = engine.layer_times(models, options, holdout.inputs[0].tensor)
    except AvqError:
        return None
    (float_ns, float_rest), (served_ns, served_rest) = _split(in_float, graph), _split(served, graph)
    return LayerCosts(float_ns, served_ns, float_rest, served_rest)


def _split(layers: Sequence[LayerTime], graph: GraphView) -> tuple[dict[str, int], int]:
    """Times by node of the graph, and the time of layers that are none of its nodes."""
    added = [layer for layer in layers if not by_node([layer], graph)]
    own = [layer for layer in layers if layer not in added]
    return by_node(own, graph), sum(layer.ns for layer in added)
