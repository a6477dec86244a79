"""Lower a plan: pure functions from (float model, plan, encoding) to a new ONNX model."""

from __future__ import annotations

import onnx

from avq.builder.lower.grid import ENCODINGS, Encoding
from avq.builder.lower.integer_products import write_integer_products
from avq.builder.lower.precision import lower_precisions
from avq.builder.lower.probe import saturation_probe
from avq.builder.lower.qdq import lower_qdq
from avq.errors import PlanError
from avq.toolbox.assemble import int8_mac_share, macs_by_node
from avq.types import QuantizationPlan


def lower(proto: onnx.ModelProto, plan: QuantizationPlan, encoding: str) -> bytes:
    """Write the model file of a plan: Q/DQ pairs, dynamic products in integers, FP16 islands.

    The model is checked; equal arguments give equal bytes.

    Raises:
        PlanError: the plan does not fit the model, or the encoding cannot express it.
    """
    model = lower_precisions(write_integer_products(lower_qdq(proto, plan, encoding)), plan)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise PlanError(
            "the plan gives an invalid model", seen=str(error).splitlines()[0][:300], fix="report this plan"
        ) from error
    return bytes(model.SerializeToString(deterministic=True))


__all__ = [
    "ENCODINGS",
    "Encoding",
    "int8_mac_share",
    "lower",
    "lower_precisions",
    "lower_qdq",
    "macs_by_node",
    "saturation_probe",
]
