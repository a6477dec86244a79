"""Bias correction without gradients: restore the mean that quantized weights take from an output.

The analytic form of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(2019), section 4.2, with means measured on calibration pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from avq.hookspecs import Workbench
from avq.toolbox.grids import dequantize, quantize
from avq.types import F64, AnyArray, GraphView, MomentRequest, NodeView, QuantizationPlan
from avq.types.arrays import ArrayRecord

#: Largest shift in units of the bias; the mean is a poor estimate above it (NNCF's threshold).
_LARGEST_SHIFT = 2.0


@dataclass(frozen=True, eq=False)
class BiasCorrection(ArrayRecord):
    """Result of ``correct_biases``.

    Attributes:
        biases: name of the bias constant -> corrected read-only array of its shape and dtype.
        shifts: node name -> largest |shift| of its channels, in units of its output.
        skipped: node name -> why its bias is unchanged.
    """

    biases: Mapping[str, AnyArray]
    shifts: Mapping[str, float]
    skipped: Mapping[str, str]

    def __post_init__(self) -> None:
        self._freeze("biases")


def corrected_biases(graph: GraphView, plan: QuantizationPlan, bench: Workbench) -> Mapping[str, AnyArray]:
    """Return overrides for biases: ``correct_biases(...).biases``."""
    return correct_biases(graph, plan, bench).biases


def correct_biases(graph: GraphView, plan: QuantizationPlan, bench: Workbench) -> BiasCorrection:
    """Add sum (W - Wq) E[x] to the bias of every convolution and Gemm with planned weights.

    E[x] is the per-channel mean of the input over the calibration pictures; padding counts as more of the same. Wq
    is the quantized value of the override of W in ``plan``, else of W.

    Skipped, with the reason: nodes without a bias, biases that several nodes share, operators whose output has no
    single mean per channel, and layers where the shift exceeds twice the bias of a channel that has one (NNCF's
    rule: there the mean is a poor estimate).

    Args:
        graph: the float graph.
        plan: grids and overrides of the weights.
        bench: gives the means.

    Returns:
        Corrected biases, shifts and skipped nodes.
    """
    skipped: dict[str, str] = {}
    wanted: dict[str, tuple[NodeView, F64]] = {}
    for node in graph.nodes:
        error = _weight_error(graph, plan, node)
        if error is not None and np.any(error):
            why = _unfit(graph, node)
            if why:
                skipped[node.name] = why
            else:
                wanted[node.name] = (node, error)
    tensors = dict.fromkeys(node.inputs[0] for node, _ in wanted.values())
    means = bench.moments([MomentRequest(tensor) for tensor in tensors]) if tensors else {}
    biases: dict[str, AnyArray] = {}
    shifts: dict[str, float] = {}
    for name, (node, error) in wanted.items():
        bias = plan.overrides.get(node.inputs[2], graph.constants[node.inputs[2]])
        shift = _shift(node, error, means[node.inputs[0]])
        if not _sane(shift, bias):
            skipped[name] = "the shift is more than twice the bias"
            continue
        biases[node.inputs[2]] = (bias.astype(np.float64) + shift.reshape(bias.shape)).astype(bias.dtype)
        shifts[name] = float(np.abs(shift).max(initial=0.0))
    return BiasCorrection(biases, shifts, skipped)


def _weight_error(graph: GraphView, plan: QuantizationPlan, node: NodeView) -> F64 | None:
    """W - Wq of a node's constant weight; None where the plan leaves it alone."""
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not graph.is_constant(node.inputs[1]):
        return None
    name = node.inputs[1]
    weight = graph.constants[name]
    point = plan.point_for(name, node.name, 1)
    if point is None and name not in plan.overrides:
        return None
    meant = np.asarray(plan.overrides.get(name, weight))
    if point is not None and point.mode != "dynamic":
        meant = dequantize(quantize(meant, point), point)
    error: F64 = weight.astype(np.float64) - meant
    return error


def _unfit(graph: GraphView, node: NodeView) -> str:
    """Why no bias can carry this node's correction; empty when one can."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return "no bias"
    bias = node.inputs[2]
    if not graph.is_constant(bias):
        return "its bias is computed"
    if len(graph.consumers(bias)) > 1:
        return "its bias is shared with other nodes"
    if node.op == "ConvTranspose":
        return "the mean of a transposed convolution depends on the position"
    if node.op == "Gemm":
        weight = graph.constants[node.inputs[1]]
        outputs = weight.shape[0] if node.attributes.get("transB", 0) else weight.shape[1]
        if node.attributes.get("transA", 0) or graph.constants[bias].size != outputs:
            return "its bias is not one number per output channel"
    return ""


def _shift(node: NodeView, error: F64, mean: F64) -> F64:
    """(outputs,) mean of what the weight error takes from each output channel."""
    if node.op == "Gemm":
        rows = error if node.attributes.get("transB", 0) else error.T
        scale = float(node.attributes.get("alpha", 1.0)) / float(node.attributes.get("beta", 1.0) or 1.0)
        shift: F64 = scale * (rows @ mean)
        return shift
    groups = int(node.attributes.get("group", 1))
    taps = error.reshape(groups, error.shape[0] // groups, error.shape[1], -1).sum(axis=3)
    grouped: F64 = np.einsum("goi,gi->go", taps, mean.reshape(groups, -1)).reshape(-1)
    return grouped


def _sane(shift: F64, bias: AnyArray) -> bool:
    known = np.abs(bias.astype(np.float64)).reshape(-1)
    return bool(np.all(np.abs(shift) < _LARGEST_SHIFT * known + 1e-12 * (known > 0)))
