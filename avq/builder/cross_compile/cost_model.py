"""Model the cost of a plan on a GPU that is not in this machine, in place of measured times.

The unit is one FP16 multiply-add of a tensor core. An INT8 one counts half, an FP32 one four (TF32 units with the
weights read twice as wide); a byte to or from memory counts as 165 of them, the ratio of an Ada card's 165 T
FP16 multiply-adds per second to its 1 TB/s (NVIDIA Ada GPU architecture, appendix A). Counted are weighted
operators, the tensors they read and their weights; what is fused behind them is free. A tensor whose readers all take
INT8 is written as bytes by its producer; where float readers remain, it is written in float and an extra kernel
quantizes it: the cost of a precision boundary.

It orders plans by work and traffic. It ignores launch times, caches and tactics, so its ratios are no
forecast of milliseconds: those come from `avq compile` on the vehicle.
"""

from __future__ import annotations

from math import prod

from avq.toolbox.assemble import COMPUTE_OPS, macs_by_node
from avq.types import GraphView, NodeView, QuantizationPlan

NAME = "cost model"
MULTIPLY_ADD = {"int8": 0.5, "fp16": 1.0, "fp32": 4.0}
BYTE = 165.0
_WIDTH = {"int8": 1, "fp16": 2, "fp32": 4}


def target_cost(graph: GraphView, plan: QuantizationPlan) -> float:
    """Return the cost of ``plan`` in FP16 multiply-adds; precisions of its nodes as `fp16.to_fp16` sets them."""
    macs = macs_by_node(graph)
    weighted = [node for node in graph.nodes if node.op in COMPUTE_OPS]
    work = sum(macs.get(n.name, 0) * MULTIPLY_ADD[precision_of(n, plan)] for n in weighted)
    weights = sum(_weight_bytes(graph, n, plan) for n in weighted)
    tensors = dict.fromkeys(name for n in weighted for name in n.inputs[:2] if not graph.is_constant(name))
    return work + BYTE * (weights + sum(_traffic(graph, name, plan) for name in tensors))


def precision_of(node: NodeView, plan: QuantizationPlan) -> str:
    """Return the precision in which the operator multiplies."""
    if all(plan.point_for(node.inputs[i], node.name, i) is not None for i in (0, 1)):
        return "int8"
    return "fp16" if plan.precision_of(node.name).precision == "fp16" else "fp32"


def _weight_bytes(graph: GraphView, node: NodeView, plan: QuantizationPlan) -> int:
    constant = [graph.constants[name].size for name in node.inputs[:2] if graph.is_constant(name)]
    return sum(constant) * _WIDTH[precision_of(node, plan)]


def _traffic(graph: GraphView, tensor: str, plan: QuantizationPlan) -> int:
    """Return the bytes written and read of one activation."""
    shape = graph.shape(tensor)
    if shape is None:
        return 0
    producer = graph.producer(tensor)
    fp16 = producer is not None and _is_fp16(plan, producer.name)
    in_float = _WIDTH["fp16" if fp16 else "fp32"]
    readers = graph.consumers(tensor)
    integers = [plan.point_for(tensor, node.name, index) is not None for node, index in readers]
    if all(integers):
        return prod(shape) * (1 + len(readers))
    quantizing = in_float + 1 if any(integers) else 0  # a kernel that reads floats and writes bytes
    reads = sum(1 if integer else in_float for integer in integers)
    return prod(shape) * (in_float + quantizing + reads)


def _is_fp16(plan: QuantizationPlan, node: str) -> bool:
    chosen = plan.precision_of(node)
    return chosen.precision == "fp16" or chosen.float_side == "fp16"
