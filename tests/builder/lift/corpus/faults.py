"""Files with one fault each, and the pitfall that an import must name.

"refused": no float graph can be made. "error": the strategy refuses it. "equal": told, and imported all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.builder.lift.corpus import nets
from tests.builder.lift.corpus.dialects import (
    BrevitasQcdq,
    ModelOptimizer,
    NncfFakeQuantize,
    NncfQdq,
    OnnxruntimeQdq,
    OnnxruntimeSigned8,
    PytorchQuantization,
    Qonnx,
    VitisAi,
)
from tests.builder.lift.corpus.odd_writers import AlongInputs, Amax128, FourBitBlocks

Ending = Literal["refused", "error", "equal"]


@dataclass(frozen=True)
class Fault:
    """A file, the code it must be told with, and how its import ends."""

    code: str
    ending: Ending
    make: Callable[[], onnx.ModelProto]


def _written(writer: object) -> onnx.ModelProto:
    model: onnx.ModelProto = writer.write()  # type: ignore[attr-defined]
    return model


def _find(model: onnx.ModelProto, op: str, index: int = 0) -> onnx.NodeProto:
    return [n for n in model.graph.node if n.op_type == op][index]


def _set(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
            return model
    raise AssertionError(name)


def _value(model: onnx.ModelProto, name: str) -> np.ndarray:
    return np.array(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name))


def _ort(net: nets.Net | None = None) -> onnx.ModelProto:
    return _written(OnnxruntimeQdq(net or nets.plain()))


def _ort_scale(value: float) -> onnx.ModelProto:
    model = _ort()
    return _set(model, _find(model, "QuantizeLinear", 1).input[1], np.asarray(value, np.float32))


def _per_channel_activation() -> onnx.ModelProto:
    model = _written(PytorchQuantization(nets.plain()))
    for node in model.graph.node:
        if node.name.startswith("r1_dq") and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.attribute.append(helper.make_attribute("axis", 1))
    spread = np.linspace(0.5, 1.5, 8).astype(np.float32) * _value(model, "r1_dq_s")
    return _set(_set(model, "r1_dq_s", spread), "r1_dq_zf", np.zeros(8, np.float32))


def _wrong_axis() -> onnx.ModelProto:
    model = _written(PytorchQuantization(nets.plain()))
    for node in model.graph.node:
        if node.name.startswith("out.w_dq") and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            next(a for a in node.attribute if a.name == "axis").i = 1
    return model


def _no_dequantizer() -> onnx.ModelProto:
    model = _ort()
    dequantize = _find(model, "DequantizeLinear", 0)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == dequantize.output[0]:
                node.input[index] = dequantize.input[0]
    model.graph.node.remove(dequantize)
    return model


def _fed_by_float() -> onnx.ModelProto:
    model = _ort()
    quantize = _find(model, "QuantizeLinear", 0)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantize.output[0]:
                node.input[index] = quantize.input[0]
    model.graph.node.remove(quantize)
    return model


def _two_quantizers() -> onnx.ModelProto:
    writer = OnnxruntimeQdq(nets.residual(), own_pairs=True)
    model = writer.write()
    return _set(model, "r1_for_sum_dq_s", _value(model, "r1_for_sum_dq_s") * 2)


def _without_zero_points() -> onnx.ModelProto:
    model = _ort()
    for node in model.graph.node:
        if node.output[0] in ("r1_dq_q", "r1_dq"):
            del node.input[2:]
    return model


def _float_zero_point() -> onnx.ModelProto:
    model = _ort()
    return _set(model, "r1_dq_z", np.asarray(-0.5, np.float32))


def _at_opset(writer: object, opset: int) -> onnx.ModelProto:
    return _written(replace(writer, opset=opset))  # type: ignore[type-var]


def _half() -> onnx.ModelProto:
    model = _written(OnnxruntimeQdq(nets.plain()))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
            )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def _sixteen_bits() -> onnx.ModelProto:
    return _written(OnnxruntimeQdq(nets.plain(), kind=np.int16))


def _bias_scale() -> onnx.ModelProto:
    model = _ort()
    return _set(model, "out.b_s", _value(model, "out.b_s") * 2)


def _unlike_branches() -> nets.Net:
    net = nets.joined()
    net.weights["c1.w"] *= np.float32(1000)
    return net


def _head() -> nets.Net:
    net = nets.plain()
    net.nodes[-1].output[0] = "logits"
    net.op("Sigmoid", ["logits"], "scores")
    net.outputs = ["scores"]
    return net


def _odd_levels() -> onnx.ModelProto:
    model = _written(NncfFakeQuantize(nets.plain()))
    next(a for a in _find(model, "FakeQuantize").attribute if a.name == "levels").i = 100
    return model


def _odd_clip() -> onnx.ModelProto:
    model = _written(BrevitasQcdq(nets.plain()))
    return _set(model, "x_dq_hi", np.asarray(5, np.int8))


def _scaling_fake_quantize() -> onnx.ModelProto:
    model = _written(NncfFakeQuantize(nets.plain()))
    return _set(model, "r1_dq_oh", _value(model, "r1_dq_oh") * 2)


def _off_grid() -> onnx.ModelProto:
    model = _written(NncfFakeQuantize(nets.plain()))
    low = _value(model, "x_dq_il") * np.float32(0.93)
    return _set(_set(model, "x_dq_il", low), "x_dq_ol", low)


def _rounding(op_name: str, mode: str) -> onnx.ModelProto:
    model = _written(Qonnx(nets.plain()))
    node = next(n for n in model.graph.node if n.name == op_name)
    next(a for a in node.attribute if a.name == "rounding_mode").s = mode.encode()
    return model


def _low_bit_channels() -> onnx.ModelProto:
    model = _written(Qonnx(nets.plain(), bits=4))
    return _set(
        model, "r1_dq_s", _value(model, "r1_dq_s") * np.linspace(0.5, 1, 8).reshape(1, 8, 1, 1).astype("f")
    )


def _dynamic() -> onnx.ModelProto:
    model = nets.plain().model()
    conv = _find(model, "Conv", 1)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["r1"], ["r1_q", "r1_s", "r1_z"], name="dynamic"),
        helper.make_node("DequantizeLinear", ["r1_q", "r1_s", "r1_z"], ["r1_dq"], name="back"),
    ]
    conv.input[0] = "r1_dq"
    return _before(model, conv, nodes)


def _before(model: onnx.ModelProto, node: onnx.NodeProto, added: list[onnx.NodeProto]) -> onnx.ModelProto:
    nodes = list(model.graph.node)
    at = next(i for i, n in enumerate(nodes) if n.name == node.name)
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*nodes[:at], *added, *nodes[at:])]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model


def _channels_last() -> onnx.ModelProto:
    """An integer convolution in the layout that onnxruntime's optimiser writes."""
    model = _ort()
    node = _find(model, "Conv", 1)
    scalar = numpy_helper.from_array(np.asarray(0.1, np.float32), "qs")
    model.graph.initializer.extend([scalar, numpy_helper.from_array(np.asarray(0, np.uint8), "qz")])
    inputs = ["r1_dq_q", "qs", "qz", "out.w_quantized", "qs", "qz", "qs", "qz"]
    made = helper.make_node(
        "QLinearConv", inputs, ["whole"], name="whole", domain="com.microsoft", channels_last=1
    )
    back = helper.make_node("DequantizeLinear", ["whole", "qs", "qz"], [node.output[0]], name="whole_dq")
    _before(model, node, [made, back])
    model.graph.node.remove(_find(model, "Conv", 1))
    return model


def _conv_integer() -> onnx.ModelProto:
    model = _ort()
    model.graph.node.append(
        helper.make_node("ConvInteger", ["r1_dq_q", "out.w_quantized"], ["accumulated"], name="integer")
    )
    return model


def _float8() -> onnx.ModelProto:
    model = _at_opset(OnnxruntimeQdq(nets.plain()), 19)
    for tensor in model.graph.initializer:
        if tensor.name == "r1_dq_z":
            tensor.CopyFrom(helper.make_tensor("r1_dq_z", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    return model


def _qonnx_op(op: str, name: str) -> onnx.ModelProto:
    """A Quant replaced by another operator of its domain."""
    model = _written(Qonnx(nets.plain()))
    node = next(n for n in model.graph.node if n.name == name)
    node.op_type = op
    if op == "BipolarQuant":
        del node.input[2:]
        del node.attribute[:]
    return model


def _unlike_pair() -> onnx.ModelProto:
    model = _ort()
    model.graph.initializer.append(numpy_helper.from_array(_value(model, "r1_dq_s") * np.float32(2), "other"))
    next(n for n in model.graph.node if n.output[0] == "r1_dq").input[1] = "other"
    return model


def _inside_if() -> onnx.ModelProto:
    model = _ort()
    pair = [n for n in model.graph.node if n.output[0] in ("out_float_dq_q", "out_dq_q", "out")]
    assert pair, [n.name for n in model.graph.node]
    inner = [onnx.NodeProto.FromString(n.SerializeToString()) for n in pair if n.op_type != "Conv"]
    for node in pair:
        if node.op_type != "Conv":
            model.graph.node.remove(node)
    inner[-1].output[0] = "taken"
    taken = helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)
    bodies = [helper.make_graph(inner, "body", [], [taken]) for _ in range(2)]
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["x"], ["total"], name="total", keepdims=0),
            helper.make_node("Cast", ["total"], ["truth"], name="truth", to=TensorProto.BOOL),
            helper.make_node(
                "If", ["truth"], ["out"], name="if", then_branch=bodies[0], else_branch=bodies[1]
            ),
        ]
    )
    return model


def _twice() -> onnx.ModelProto:
    model = _ort()
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(_value(model, "r1_dq_s") * np.float32(3), "coarse"),
            numpy_helper.from_array(np.asarray(7, np.uint8), "seven"),
        ]
    )
    conv = _find(model, "Conv", 1)
    again = [
        helper.make_node("QuantizeLinear", ["r1_dq", "coarse", "seven"], ["again_q"], name="again_q"),
        helper.make_node("DequantizeLinear", ["again_q", "coarse", "seven"], ["again"], name="again"),
    ]
    conv.input[0] = "again"
    return _before(model, conv, again)


def _scale_of_picture() -> onnx.ModelProto:
    model = _ort()
    first = _find(model, "QuantizeLinear", 0)
    _before(model, first, [helper.make_node("ReduceMax", ["x"], ["peak"], name="peak", keepdims=0)])
    for node in model.graph.node:
        if node.output[0] in ("x_dq", "x_dq_q"):
            node.input[1] = "peak"
    return model


def _integers_moved() -> onnx.ModelProto:
    """Not a fault: integers are pooled before they are dequantized."""
    model = _ort()
    dequantize = next(n for n in model.graph.node if n.output[0] == "r1_dq")
    pool = helper.make_node(
        "MaxPool", [dequantize.input[0]], ["pooled"], name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    dequantize.input[0] = "pooled"
    return _before(model, dequantize, [pool])


FAULTS: dict[str, Fault] = {
    "float-model": Fault("AVQ-Q01", "error", lambda: nets.plain().model()),
    "signed-zero-point": Fault("AVQ-Q02", "equal", lambda: _written(OnnxruntimeSigned8(nets.plain()))),
    "unsigned-zero-point": Fault("AVQ-Q03", "equal", _ort),
    "lopsided-range": Fault("AVQ-Q04", "equal", lambda: _ort(nets.residual())),
    "depthwise-per-tensor": Fault("AVQ-Q05", "equal", lambda: _written(VitisAi(nets.depthwise()))),
    "activation-per-channel": Fault("AVQ-Q06", "equal", _per_channel_activation),
    "axis-of-another-size": Fault("AVQ-Q07", "error", _wrong_axis),
    "quantize-alone": Fault("AVQ-Q08", "refused", _no_dequantizer),
    "dequantize-of-float": Fault("AVQ-Q09", "refused", _fed_by_float),
    "two-quantizers-one-tensor": Fault("AVQ-Q10", "equal", _two_quantizers),
    "scale-zero": Fault("AVQ-Q11", "error", lambda: _ort_scale(0.0)),
    "scale-negative": Fault("AVQ-Q11", "error", lambda: _ort_scale(-0.1)),
    "scale-nan": Fault("AVQ-Q11", "error", lambda: _ort_scale(float("nan"))),
    "scale-denormal": Fault("AVQ-Q12", "equal", lambda: _both_scales(1e-40)),
    "scale-below-half": Fault("AVQ-Q13", "equal", lambda: _both_scales(1e-9)),
    "scale-above-half": Fault("AVQ-Q13", "equal", lambda: _both_scales(1e6)),
    "no-zero-point": Fault("AVQ-Q14", "equal", _without_zero_points),
    "zero-point-float": Fault("AVQ-Q15", "error", _float_zero_point),
    "zero-off-the-grid": Fault("AVQ-Q15", "error", _off_grid),
    "scale-through-cast": Fault("AVQ-Q16", "equal", lambda: _written(PytorchQuantization(nets.plain()))),
    "per-channel-opset-12": Fault("AVQ-Q17", "equal", lambda: _at_opset(ModelOptimizer(nets.plain()), 12)),
    "half-scales-opset-17": Fault("AVQ-Q18", "equal", _half),
    "int16-opset-17": Fault("AVQ-Q19", "equal", _sixteen_bits),
    "opset-23": Fault("AVQ-Q20", "equal", lambda: _at_opset(OnnxruntimeQdq(nets.plain()), 23)),
    "norm-not-fused": Fault("AVQ-Q21", "equal", lambda: _written(PytorchQuantization(nets.normed()))),
    "bias-scale": Fault("AVQ-Q22", "equal", _bias_scale),
    "part-left-float": Fault(
        "AVQ-Q23", "equal", lambda: _written(OnnxruntimeQdq(nets.plain(), skip=("out",)))
    ),
    "concat-unlike-scales": Fault("AVQ-Q24", "equal", lambda: _ort(nets.joined())),
    "concat-collapse": Fault("AVQ-Q25", "equal", lambda: _ort(_unlike_branches())),
    "sigmoid-quantized": Fault("AVQ-Q26", "equal", lambda: _ort(_head())),
    "amax-over-128": Fault("AVQ-Q27", "equal", lambda: _written(Amax128(nets.plain()))),
    "half-range": Fault("AVQ-Q28", "equal", lambda: _written(NncfQdq(nets.plain()))),
    "hundred-levels": Fault("AVQ-Q29", "error", _odd_levels),
    "clip-no-grid": Fault("AVQ-Q29", "error", _odd_clip),
    "fake-quantize-scales": Fault("AVQ-Q30", "error", _scaling_fake_quantize),
    "activation-floored": Fault("AVQ-Q31", "error", lambda: _rounding("r1_dq", "FLOOR")),
    "low-bit-per-channel": Fault("AVQ-Q32", "error", _low_bit_channels),
    "run-time-scales": Fault("AVQ-Q33", "refused", _dynamic),
    "integers-channels-last": Fault("AVQ-Q34", "refused", _channels_last),
    "conv-integer": Fault("AVQ-Q34", "refused", _conv_integer),
    "float8": Fault("AVQ-Q35", "refused", _float8),
    "float-quant": Fault("AVQ-Q35", "refused", lambda: _qonnx_op("FloatQuant", "r1_dq")),
    "one-bit-activation": Fault("AVQ-Q36", "error", lambda: _qonnx_op("BipolarQuant", "r1_dq")),
    "trunc": Fault("AVQ-Q37", "refused", lambda: _qonnx_op("Trunc", "r1_dq")),
    "unlike-pair": Fault("AVQ-Q38", "error", _unlike_pair),
    "inside-if": Fault("AVQ-Q39", "refused", _inside_if),
    "twice": Fault("AVQ-Q40", "equal", _twice),
    "scales-along-inputs": Fault("AVQ-Q43", "equal", lambda: _written(AlongInputs(nets.upward()))),
    "scale-of-the-picture": Fault("AVQ-Q42", "refused", _scale_of_picture),
}

#: Unusual, and right.
ODD: dict[str, Callable[[], onnx.ModelProto]] = {
    "integers-moved": _integers_moved,
    "weight-rounded-down": lambda: _rounding("out.w_dq", "FLOOR"),
    "one-bit-weights": lambda: _qonnx_op("BipolarQuant", "out.w_dq"),
    "four-bit-blocks": lambda: _written(FourBitBlocks(nets.linear())),
    "brevitas-8bit": lambda: _written(BrevitasQcdq(nets.residual(), bits=8)),
    "qonnx-8bit": lambda: _written(Qonnx(nets.joined(), bits=8)),
    "fakequantize-256-weights": lambda: _written(NncfFakeQuantize(nets.plain(), weight_levels=127)),
    "modelopt-single-branch": lambda: _written(ModelOptimizer(nets.residual(), everything=True)),
}


def _both_scales(value: float) -> onnx.ModelProto:
    """One activation's scale, of Q and DQ alike."""
    model = _ort()
    return _set(model, "r1_dq_s", np.asarray(value, np.float32))
