"""Where OpenVINO cannot compile packed weights: pointwise convolutions that read one of several outputs.

A pass of its CPU plugin turns a pointwise convolution with integer weights and a Reshape behind it into a matrix
product, and asks the operator before it for its only output. A Split has several: the model is refused (2026.4).
"""

from __future__ import annotations

from typing import Any


def unpack_weights(openvino: Any, core: Any, network: Any) -> int:
    """Compute such weights now, in ``network`` itself; the values stay those that the graph says.

    Args:
        openvino: the module.
        core: compiles the few operators behind a weight.
        network: an ``openvino.Model``, changed in place.

    Returns:
        How many convolutions were changed.
    """
    changed = 0
    for node in network.get_ordered_ops():
        if not _is_refused(node):
            continue
        weight = openvino.Model([node.input_value(1)], [])
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        values = core.compile_model(weight, "CPU", settings)([])[0].copy()
        node.input(1).replace_source_output(openvino.op.Constant(values).output(0))
        changed += 1
    return changed


def _is_refused(node: Any) -> bool:
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return False
    weight = node.input_value(1)
    pointwise = weight.partial_shape.is_static and set(list(weight.shape)[-2:]) == {1}
    several = len(node.input_value(0).get_node().outputs()) > 1
    return pointwise and several and weight.get_node().get_type_name() != "Constant" and _is_constant(weight)


def _is_constant(value: Any) -> bool:
    """Whether nothing but constants lies behind it."""
    node = value.get_node()
    if node.get_type_name() == "Parameter":
        return False
    return all(_is_constant(node.input_value(index)) for index in range(node.get_input_size()))
