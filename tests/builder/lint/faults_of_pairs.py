"""Faults of scales and zero points, and of Q against DQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builder.lint.fault import channelwise, fault, one
from tests.builder.lint.graph_maker import Made, Site


def _scaled(made: Made, rng: np.random.Generator, value: float, sites: list[Site]) -> bool:
    """One coefficient of one site's scale becomes ``value``."""
    if not sites:
        return False
    name = one(rng, sites).dq.input[1]
    scale = made.array(name).copy()
    scale[tuple(int(rng.integers(n)) for n in scale.shape)] = value
    made.put(name, scale)
    return True


def _zeroed(
    made: Made, rng: np.random.Generator, sites: list[Site], change: Callable[[np.ndarray], np.ndarray]
) -> bool:
    if not sites:
        return False
    name = one(rng, sites).dq.input[2]
    made.put(name, change(made.array(name)))
    return True


# Scales and zero points


@fault(4, "rejects")
def zero_scale(made: Any, rng: Any) -> Any:
    return _scaled(made, rng, 0.0, made.sites)


@fault(4, "rejects")
def negative_scale(made: Any, rng: Any) -> Any:
    return _scaled(made, rng, -0.02, made.sites)


@fault(4, "rejects")
def nan_scale(made: Any, rng: Any) -> Any:
    return _scaled(made, rng, np.nan, made.sites)


@fault(4, "accepts")
def infinite_scale(made: Any, rng: Any) -> Any:
    return _scaled(made, rng, np.inf, made.sites)


@fault(4, "accepts")
def denormal_scale(made: Any, rng: Any) -> Any:
    tiny = 1e-6 if made.get(made.sites[0].dq.input[1]).dtype == np.float16 else 1e-41
    return _scaled(made, rng, tiny, made.sites)


@fault(1, "warns")
def unsigned_data(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: z.astype(np.uint8))


@fault(23, "warns")
def integers_of_32_bits(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: z.astype(np.int32))


@fault(2, "rejects")
def unsigned_data_around_128(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: np.full_like(z, 128, np.uint8))


@fault(2, "rejects")
def shifted_data(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: np.full_like(z, int(rng.integers(1, 100))))


@fault(2, "rejects")
def one_shifted_weight_channel(made: Any, rng: Any) -> Any:
    def shift(zero: np.ndarray) -> np.ndarray:
        return np.where(np.arange(zero.size) == zero.size // 2, 1, 0).astype(np.int8)

    return _zeroed(made, rng, channelwise(made, made.weights()), shift)


@fault(1, "rejects")
def unsigned_weights(made: Any, rng: Any) -> bool:
    sites = [site for site in made.weights() if site.q is None]
    if not sites:
        return False
    node = one(rng, sites).dq
    made.put(node.input[0], (made.get(node.input[0]).astype(np.int16) + 128).clip(0, 255).astype(np.uint8))
    made.put(node.input[2], made.get(node.input[2]).astype(np.uint8))
    return True


@fault(3, "rejects")
def integer_bias(made: Any, rng: Any) -> bool:
    nodes = [node for node in made.nodes("Conv") if len(node.input) == 3]
    if not nodes:
        return False
    conv = one(rng, nodes)
    count = made.get(conv.input[2]).size
    made.put("bias_integers", np.arange(count, dtype=np.int32))
    made.put("bias_scale", np.asarray(0.001, made.get(made.sites[0].dq.input[1]).dtype))
    made.put("bias_zero", np.zeros((), np.int32))
    parameters = ["bias_integers", "bias_scale", "bias_zero"]
    to_half: dict[str, Any] = {"output_dtype": TensorProto.FLOAT16} if made.opset >= 23 and made.half else {}
    dequantizer = helper.make_node("DequantizeLinear", parameters, ["bias_float"], name="bias", **to_half)
    conv.input[2] = "bias_float"
    made.insert_before(conv, dequantizer)
    return True


@fault(5, "accepts")
def data_scale_per_channel(made: Any, rng: Any) -> bool:
    sites = [s for s in made.data() if any("Conv" in n.op_type for n in _readers(made, s.dq.output[0]))]
    if not sites:
        return False
    site = one(rng, sites)
    channels = _channels_of_reader(made, site)
    scale, zero = made.get(site.dq.input[1]), made.get(site.dq.input[2])
    made.put(site.dq.input[1], np.full(channels, scale.flat[0], scale.dtype))
    made.put(site.dq.input[2], np.zeros(channels, zero.dtype))
    for node in site.pair:
        node.attribute.append(helper.make_attribute("axis", 1))
    return True


def _readers(made: Made, name: str) -> list[onnx.NodeProto]:
    return [node for node in made.proto.graph.node if name in node.input]


def _channels_of_reader(made: Made, site: Site) -> int:
    conv = next(n for n in _readers(made, site.dq.output[0]) if "Conv" in n.op_type)
    weight = next(s for s in made.sites if s.dq.output[0] == conv.input[1])
    source = (weight.q or weight.dq).input[0]
    shape = made.array(source).shape
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    return shape[0] if conv.op_type == "ConvTranspose" else shape[1] * group


@fault(21, "rejects")
def too_few_scales(made: Any, rng: Any) -> Any:
    sites = channelwise(made, made.weights())
    if not sites:
        return False
    node = one(rng, sites).dq
    for name in node.input[1:3]:
        made.put(name, made.array(name)[:-1])
    return made.get(node.input[1]).size > 1


@fault(21, "rejects")
def fewer_zero_points(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, channelwise(made, made.weights()), lambda z: np.zeros((), np.int8))


@fault(21, "rejects")
def scale_of_two_axes(made: Any, rng: Any) -> bool:
    sites = made.data()
    if not sites:
        return False
    node = one(rng, sites).dq
    made.put(node.input[1], np.full((1, 2), 0.01, made.get(node.input[1]).dtype))
    made.put(node.input[2], np.zeros((1, 2), np.int8))
    return True


@fault(21, "rejects")
def axis_out_of_range(made: Any, rng: Any) -> bool:
    sites = channelwise(made, made.weights())
    if not sites:
        return False
    for node in one(rng, sites).pair:
        next(a for a in node.attribute if a.name == "axis").i = 6
    return True


@fault(31, "accepts")
def scales_along_the_summed_axis(made: Any, rng: Any) -> bool:
    """As many scales as input channels: the counts fit, the axis does not."""
    sites = channelwise(made, made.weights("Conv", "ConvTranspose", "Gemm"))
    shaped = [(s, made.get((s.q or s.dq).input[0]).shape) for s in sites]
    fitting = [(site, shape) for site, shape in shaped if shape[0] > 1 and shape[1] > 1]
    if not fitting:
        return False
    site, shape = one(rng, fitting)
    attributes = [next(a for a in node.attribute if a.name == "axis") for node in site.pair]
    other = 1 - attributes[0].i % len(shape)
    for attribute in attributes:
        attribute.i = other
    scale = made.get(site.dq.input[1])
    made.put(site.dq.input[1], np.full(shape[other], scale.flat[0], scale.dtype))
    made.put(site.dq.input[2], np.zeros(shape[other], np.int8))
    return True


@fault(11, "accepts")
def no_zero_point(made: Any, rng: Any) -> bool:
    if not made.data():
        return False
    del one(rng, made.data()).q.input[2:]
    return True


@fault(24, "rejects")
def integer_scale(made: Any, rng: Any) -> bool:
    node = one(rng, made.sites).dq
    made.put(node.input[1], np.ones(made.get(node.input[1]).shape, np.int32))
    return True


@fault(13, "rejects")
def half_scale_at_an_old_opset(made: Any, rng: Any) -> Any:
    return _retyped_scale(made, rng, np.float16) if made.opset < 19 else False


@fault(41, "rejects")
def float_weight_scale_among_halves(made: Any, rng: Any) -> Any:
    halves = [s for s in made.weights("Conv") if made.get(s.dq.input[1]).dtype == np.float16]
    if not halves:
        return False
    scale = made.get(halves[0].dq.input[1])
    made.put(halves[0].dq.input[1], scale.astype(np.float32))
    return halves[0].q is None


def _retyped_scale(made: Made, rng: np.random.Generator, kind: type) -> bool:
    """All scales, so that the types of the network stay one."""
    for name in sorted({site.dq.input[1] for site in made.sites}):
        made.put(name, made.array(name).astype(kind))
    return bool(rng.random() >= 0)


@fault(9, "accepts")
def computed_scale(made: Any, rng: Any) -> bool:
    site = one(rng, made.sites)
    name = site.dq.input[1]
    made.put("one", np.ones((), made.array(name).dtype))
    made.insert_before(site.pair[0], helper.make_node("Mul", [name, "one"], ["computed"], name="computing"))
    for node in site.pair:
        node.input[1] = "computed"
    return True


@fault(9, "accepts")
def computed_zero_point(made: Any, rng: Any) -> bool:
    site = one(rng, made.sites)
    name = site.dq.input[2]
    made.insert_before(site.pair[0], helper.make_node("Identity", [name], ["handed_on"], name="handing"))
    for node in site.pair:
        node.input[2] = "handed_on"
    return True


@fault(44, "rejects")
def sixteen_bits(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: z.astype(np.int16)) if made.opset >= 21 else False


@fault(14, "rejects")
def sixteen_bits_at_an_old_opset(made: Any, rng: Any) -> Any:
    return _zeroed(made, rng, made.data(), lambda z: z.astype(np.int16)) if made.opset < 21 else False


@fault(22, "rejects")
def scales_per_block(made: Any, rng: Any) -> bool:
    sites = [s for s in made.weights("Conv") if s.q is None and made.get(s.dq.input[0]).shape[1] % 2 == 0]
    if made.opset < 21 or not sites:
        return False
    node = one(rng, sites).dq
    out, channels, *kernel = made.get(node.input[0]).shape
    made.put(node.input[1], np.full((out, channels // 2, *kernel), 0.01, made.get(node.input[1]).dtype))
    made.put(node.input[2], np.zeros((out, channels // 2, *kernel), np.int8))
    kept = [a for a in node.attribute if a.name != "axis"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("axis", 1), helper.make_attribute("block_size", 2)])
    return True


# Q against DQ


@fault(7, "accepts")
def integers_cast_to_float(made: Any, rng: Any) -> bool:
    if not made.data():
        return False
    site = one(rng, made.data())
    kind = TensorProto.FLOAT16 if made.half else TensorProto.FLOAT
    cast = helper.make_node("Cast", [site.q.output[0]], list(site.dq.output), name="cast", to=kind)
    site.dq.CopyFrom(cast)
    return True


@fault(8, "accepts")
def clipped_integers(made: Any, rng: Any) -> bool:
    if not made.data():
        return False
    site = one(rng, made.data())
    made.put("low", np.int8(-100))
    made.put("high", np.int8(100))
    made.behind(site.q.output[0], "Clip", "low", "high", reader=site.dq)
    return True


@fault(27, "rejects")
def quantized_integers(made: Any, rng: Any) -> bool:
    sites = [s for s in made.data() if not made.half]
    if not sites:
        return False
    quantizer = one(rng, sites).q
    made.behind(quantizer.input[0], "Cast", reader=quantizer, to=TensorProto.INT32)
    return True


@fault(10, "rejects")
def dynamic_quantization(made: Any, rng: Any) -> bool:
    sites = [s for s in made.data() if not made.half]
    if not sites:
        return False
    site = one(rng, sites)
    outputs = [site.q.output[0], "dynamic_scale", "dynamic_zero"]
    dynamic = helper.make_node("DynamicQuantizeLinear", [site.q.input[0]], outputs, name="dynamic")
    site.q.CopyFrom(dynamic)
    site.dq.input[1:] = outputs[1:]
    return True


@fault(10, "rejects")
def integer_convolution(made: Any, rng: Any) -> bool:
    """QLinearConv instead of DQ, Conv, Q: what onnxruntime's other format writes."""
    site = _float_conv_site(made, rng)
    if site is None:
        return False
    data, weight, conv = site
    parameters = [data.q.output[0], *data.q.input[1:3], weight.dq.input[0], *weight.dq.input[1:3]]
    kept = list(conv.attribute)
    name = conv.output[0]
    conv.CopyFrom(
        helper.make_node("QLinearConv", [*parameters, *data.q.input[1:3]], ["int_conv"], name="integer")
    )
    conv.attribute.extend(kept)
    back = helper.make_node("DequantizeLinear", ["int_conv", *data.q.input[1:3]], [name], name="int_back")
    after = _readers(made, name)[0]
    made.insert_before(after, back)
    return True


def _float_conv_site(made: Any, rng: Any) -> Any:
    found = []
    for conv in made.nodes("Conv"):
        data = next((s for s in made.data() if s.dq.output[0] == conv.input[0]), None)
        weight = next(
            (s for s in made.weights("Conv") if s.dq.output[0] == conv.input[1] and s.q is None), None
        )
        if data is not None and weight is not None and not made.half:
            found.append((data, weight, conv))
    return one(rng, found) if found else None


@fault(20, "rejects")
def training_dialect(made: Any, rng: Any) -> bool:
    if not made.data():
        return False
    site = one(rng, made.data())
    dialect = helper.make_node(
        "Quant", list(site.q.input), list(site.dq.output), name="q", domain="onnx.brevitas"
    )
    site.dq.CopyFrom(dialect)
    made.proto.opset_import.append(helper.make_opsetid("onnx.brevitas", 1))
    return True
