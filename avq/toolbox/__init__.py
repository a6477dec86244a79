"""What quantization strategies share: where quantizers go, and how ranges become grids."""

from __future__ import annotations

from avq.toolbox.grids import activation_point, quantize, weight_point
from avq.toolbox.placement import (
    Placement,
    calibration_tensors,
    concat_ties,
    place,
    residual_identity_edges,
)

__all__ = [
    "Placement",
    "activation_point",
    "calibration_tensors",
    "concat_ties",
    "place",
    "quantize",
    "residual_identity_edges",
    "weight_point",
]
