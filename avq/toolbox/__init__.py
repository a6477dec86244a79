"""Building blocks of quantization strategies: placement, grids, plans, equalisation, rounding, bias correction."""

from __future__ import annotations

from avq.process import STANDARD_OUTPUT, suppress_output
from avq.toolbox.assemble import (
    Ranging,
    activation_edges,
    assemble,
    int8_mac_share,
    macs_by_node,
    wanted_statistics,
)
from avq.toolbox.bias_correction import BiasCorrection, correct_biases, corrected_biases
from avq.toolbox.equalize import Equalization, Pair, equalize, equalized, find_pairs
from avq.toolbox.grids import (
    GridOptions,
    RangingOptions,
    WeightMethod,
    activation_point,
    dequantize,
    quantize,
    weight_point,
)
from avq.toolbox.placement import (
    Placement,
    calibration_tensors,
    concat_ties,
    decoding_nodes,
    place,
    residual_identity_edges,
)
from avq.toolbox.rounding import RoundedWeights, gram_rounded_weights, one_blas_thread, round_weights

__all__ = [
    "STANDARD_OUTPUT",
    "BiasCorrection",
    "Equalization",
    "GridOptions",
    "Pair",
    "Placement",
    "Ranging",
    "RangingOptions",
    "RoundedWeights",
    "WeightMethod",
    "activation_edges",
    "activation_point",
    "assemble",
    "calibration_tensors",
    "concat_ties",
    "correct_biases",
    "corrected_biases",
    "decoding_nodes",
    "dequantize",
    "equalize",
    "equalized",
    "find_pairs",
    "gram_rounded_weights",
    "int8_mac_share",
    "macs_by_node",
    "suppress_output",
    "one_blas_thread",
    "place",
    "quantize",
    "residual_identity_edges",
    "round_weights",
    "wanted_statistics",
    "weight_point",
]
