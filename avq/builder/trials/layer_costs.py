"""Where an engine spends its time, float against the plan as it is served, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from avq.builder.lower import lower
from avq.builder.probe_set import ProbeSet
from avq.builder.request import Request
from avq.builder.trials.candidates import FLOAT, Candidate
from avq.builder.trials.layer_times import by_node
from avq.errors import AvqError
from avq.types import GraphView, LayerTime, QuantizationPlan, SessionOptions


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
    probe_set: ProbeSet,
) -> LayerCosts | None:
    """Both models on the candidate's engine; None where it does not tell, or for the float model."""
    told = getattr(request.float_engines.get(candidate.engine), "layer_times", None)
    if told is None or candidate.encoding == FLOAT or not probe_set.inputs:
        return None
    models = [proto.SerializeToString(), lower(proto, plan, candidate.encoding)]
    options = SessionOptions(threads=request.recipe.threads, precision=candidate.precision)
    try:
        in_float, served = told(models, options, probe_set.inputs[0].tensor)
    except AvqError:
        return None
    (float_ns, float_rest), (served_ns, served_rest) = _split(in_float, graph), _split(served, graph)
    return LayerCosts(float_ns, served_ns, float_rest, served_rest)


def _split(layers: Sequence[LayerTime], graph: GraphView) -> tuple[dict[str, int], int]:
    """Times by node of the graph, and the time of layers that are none of its nodes."""
    added = [layer for layer in layers if not by_node([layer], graph)]
    own = [layer for layer in layers if layer not in added]
    return by_node(own, graph), sum(layer.ns for layer in added)
