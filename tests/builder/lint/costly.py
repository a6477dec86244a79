"""Legal networks that are slower, or lose boxes: lint warns of them and the parser says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from onnx import TensorProto, helper

from tests.builder.lint.graph_maker import SIDE_PX, Made, Maker, Value

Build = Callable[[Maker, Value], Value]


@dataclass(frozen=True)
class Costly:
    """``build`` puts the pattern into a network; ``rule`` warns of it."""

    name: str
    rule: str
    build: Build


COSTLY: list[Costly] = []


def costly(rule: int) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        COSTLY.append(Costly(build.__name__, f"AVQ-L{rule:02d}", build))
        return build

    return add


def with_pattern(seed: int, pattern: Costly) -> Made:
    """The pattern between legal blocks."""
    maker = Maker(seed)
    start = maker.op("Cast", ["image"], to=TensorProto.FLOAT16) if maker.half else "image"
    x = maker.conv(Value(start, 3, SIDE_PX), 8)
    x = maker.residual(pattern.build(maker, x))
    return maker.made([maker.head(x)])


@costly(32)
def pair_between_pad_and_conv(maker: Any, x: Any) -> Any:
    pads = maker.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads")
    padded = maker.pair(maker.op("Pad", [x.name, pads]))
    out = maker.op("Conv", [padded, maker.weight((8, x.channels, 3, 3), "Conv", 0)])
    return Value(out, 8, x.size)


@costly(33)
def gate_of_a_silu_quantized(maker: Any, x: Any) -> Any:
    inner = maker.conv(Value(x.name, x.channels, 4), act="none")
    gate = maker.pair(maker.op("Sigmoid", [inner.name]))
    both = [inner.name, gate] if maker.chance(0.5) else [gate, inner.name]
    return Value(maker.op("Mul", both), inner.channels, x.size)


@costly(33)
def input_of_a_sigmoid_quantized(maker: Any, x: Any) -> Any:
    inner = maker.conv(Value(x.name, x.channels, 4), act="none")
    gate = maker.op("Sigmoid", [maker.pair(inner.name)])
    return Value(maker.op("Mul", [inner.name, gate]), inner.channels, x.size)


@costly(15)
def concat_with_two_scales(maker: Any, x: Any) -> Any:
    names = [maker.pair(maker.op("Relu", [x.name]), scale) for scale in (0.0625, 0.125)]
    return Value(maker.op("Concat", names, axis=1), 2 * x.channels, x.size)


@costly(34)
def boxes_and_scores_quantized_after_their_concat(maker: Any, x: Any) -> Any:
    names = [x.name, maker.op("Sigmoid", [maker.op("Neg", [x.name])])]
    return Value(maker.pair(maker.op("Concat", names, axis=1)), 2 * x.channels, x.size)


@costly(34)
def boxes_and_scores_tied_to_one_scale(maker: Any, x: Any) -> Any:
    scores = maker.op("Transpose", [maker.op("Sigmoid", [maker.op("Neg", [x.name])])], perm=[0, 1, 3, 2])
    names = [maker.pair(name, scale=0.0625) for name in (x.name, scores)]
    return Value(maker.op("Concat", names, axis=1), 2 * x.channels, x.size)


@costly(17)
def pair_between_conv_and_relu(maker: Any, x: Any) -> Any:
    inner = maker.conv(Value(x.name, x.channels, 4), act="none")
    return Value(maker.op("Relu", [maker.pair(inner.name)]), inner.channels, x.size)


@costly(19)
def depthwise_with_one_scale(maker: Any, x: Any) -> Any:
    parameters = maker._parameters(0)
    integers = maker.constant(maker.rng.integers(-127, 128, (x.channels, 1, 3, 3)).astype(np.int8), "weight")
    weight = maker.op("DequantizeLinear", [integers, *parameters], **maker._to_float())
    out = maker.op("Conv", [maker.pair(x.name), weight], group=x.channels, pads=[1] * 4)
    return Value(out, x.channels, x.size)


@costly(35)
def both_branches_of_a_residual_quantized(maker: Any, x: Any) -> Any:
    inner = maker.conv(Value(x.name, x.channels, 4), x.channels, act="none")
    return Value(maker.op("Add", [maker.pair(inner.name), maker.pair(x.name)]), x.channels, x.size)


@costly(28)
def pair_of_two_scales(maker: Any, x: Any) -> Any:
    first, second = maker._parameters(0, 0.03125), maker._parameters(0, 0.0625)
    integers = maker.op("QuantizeLinear", [x.name, *first])
    return Value(maker.op("DequantizeLinear", [integers, *second], **maker._to_float()), x.channels, x.size)


@costly(26)
def bias_in_eight_bits(maker: Any, x: Any) -> Any:
    scale, zero = maker._parameters(0)
    integers = maker.constant(np.arange(8, dtype=np.int8), "bias")
    bias = maker.op("DequantizeLinear", [integers, scale, zero], **maker._to_float())
    weight = maker.weight((8, x.channels, 1, 1), "Conv", 0)
    return Value(maker.op("Conv", [maker.pair(x.name), weight, bias]), 8, x.size)


@costly(30)
def pair_of_another_domain(maker: Any, x: Any) -> Any:
    back = maker.pair(x.name)
    for node in maker.nodes[-2:]:
        node.domain = "com.microsoft"
        del node.attribute[:]
    if maker.half and not maker.half_scales:
        back = maker.op("Cast", [back], to=TensorProto.FLOAT16)
    return Value(back, x.channels, x.size)


def output_quantized(seed: int) -> Made:
    """AVQ-L16: the joined boxes and scores leave through one pair."""
    maker = Maker(seed)
    maker.half = maker.half_scales = False
    maker.float = cast(Any, np.dtype(np.float32))
    x = maker.conv(Value("image", 3, SIDE_PX), 8)
    made = maker.made([maker.pair(maker.head(x))])
    last, pair = made.nodes("Identity")[-1], made.data()[-1]
    pair.dq.output[0] = last.output[0]
    made.proto.graph.node.remove(last)
    return made


def integer_output(seed: int) -> Made:
    """AVQ-L29: the network gives int8."""
    made = output_quantized(seed)
    pair = made.data()[-1]
    name = made.proto.graph.output[0].name
    made.proto.graph.node.remove(pair.dq)
    assert pair.q is not None
    pair.q.output[0] = name
    made.proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    return made


def open_batch(made: Made) -> Made:
    """AVQ-L46: any number of pictures."""
    made.proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE_PX, SIDE_PX])
    )
    return made
