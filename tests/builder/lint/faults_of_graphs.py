"""Faults of the graph itself: what is no ONNX graph, and what the parser cannot import."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.builder.lint.fault import channelwise, fault, one


@fault(36, "rejects")
def dangling_input(made: Any, rng: Any) -> bool:
    node = one(rng, [n for n in made.proto.graph.node if n.input and n.op_type != "Resize"])
    node.input[0] = "nobody"
    return True


@fault(36, "rejects")
def output_nobody_makes(made: Any, rng: Any) -> Any:
    made.proto.graph.output[0].name = "nobody"
    return bool(rng.random() >= 0)


@fault(37, "rejects")
def cycle(made: Any, rng: Any) -> Any:
    nodes = made.nodes("Conv")
    early, late = nodes[0], made.nodes("Reshape", "Gemm", "MatMul")[0]
    early.input[0] = late.output[0]
    return bool(rng.random() >= 0)


@fault(38, "rejects")
def two_makers_of_one_tensor(made: Any, rng: Any) -> bool:
    node = one(rng, made.nodes("Conv", "QuantizeLinear"))
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    copied.name += "_again"
    made.proto.graph.node.append(copied)
    return True


@fault(38, "rejects")
def one_constant_twice(made: Any, rng: Any) -> bool:
    tensors = list(made.proto.graph.initializer)
    made.proto.graph.initializer.append(one(rng, tensors))
    return True


@fault(39, "rejects")
def corrupt_constant(made: Any, rng: Any) -> bool:
    tensors = [t for t in made.proto.graph.initializer if len(t.raw_data) > 8]
    tensor = one(rng, tensors)
    tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    return True


@fault(40, "rejects")
def missing_attribute(made: Any, rng: Any) -> bool:
    nodes = made.nodes("Concat")
    if not nodes:
        return False
    del one(rng, nodes).attribute[:]
    return True


@fault(40, "rejects")
def missing_input(made: Any, rng: Any) -> bool:
    del one(rng, made.nodes("Conv")).input[1:]
    return True


@fault(40, "accepts")
def unknown_attribute(made: Any, rng: Any) -> bool:
    one(rng, made.nodes("Conv")).attribute.append(helper.make_attribute("quantisation", 1))
    return True


@fault(40, "accepts")
def opset_before_quantization(made: Any, rng: Any) -> Any:
    made.proto.opset_import[0].version = 9
    return bool(not made.nodes("LeakyRelu", "Pad", "Resize", "Clip") and rng.random() >= 0)


@fault(6, "accepts")
def channelwise_at_opset_12(made: Any, rng: Any) -> Any:
    made.proto.opset_import[0].version = 12
    return bool(channelwise(made, made.weights()) and rng.random() >= 0)


@fault(40, "depends")  # the parser then reads operators as the oldest opset had them
def no_opset(made: Any, rng: Any) -> Any:
    del made.proto.opset_import[:]
    return bool(rng.random() >= 0)


@fault(43, "rejects")
def operator_nobody_knows(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    made.behind(conv.input[0], "Quantise", reader=conv)
    return True


@fault(43, "rejects")
def operator_without_importer(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    made.behind(conv.input[0], "Bernoulli", reader=conv)
    return made.opset >= 15


@fault(43, "rejects")
def operator_of_another_domain(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    name = made.behind(conv.input[0], "Deblock", reader=conv)
    next(n for n in made.proto.graph.node if n.output[0] == name).domain = "vendor.ops"
    made.proto.opset_import.append(helper.make_opsetid("vendor.ops", 1))
    return True


@fault(41, "rejects")
def half_and_float(made: Any, rng: Any) -> bool:
    adds = made.nodes("Concat", "Add")
    if not adds:
        return False
    node = one(rng, adds)
    made.behind(
        node.input[0], "Cast", reader=node, to=TensorProto.FLOAT if made.half else TensorProto.FLOAT16
    )
    return True


@fault(41, "rejects")
def convolved_integers(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    made.behind(conv.input[0], "Cast", reader=conv, to=TensorProto.INT32)
    return True


@fault(42, "rejects")
def other_channels(made: Any, rng: Any) -> bool:
    sites = [s for s in made.weights("Conv") if s.q is None and made.get(s.dq.input[0]).shape[1] > 1]
    if not sites:
        return False
    name = one(rng, sites).dq.input[0]
    made.put(name, np.ascontiguousarray(made.get(name)[:, :-1]))
    return True


@fault(42, "accepts")  # it counts biases against weights that are constants only, not behind Q/DQ
def other_bias(made: Any, rng: Any) -> bool:
    dequantized = {site.dq.output[0] for site in made.weights("Conv")}
    nodes = [n for n in made.nodes("Conv") if len(n.input) == 3 and n.input[1] in dequantized]
    if not nodes:
        return False
    name = one(rng, nodes).input[2]
    made.put(name, made.get(name)[:-1])
    return True


@fault(42, "rejects")
def other_kernel(made: Any, rng: Any) -> bool:
    nodes = [n for n in made.nodes("Conv") if any(a.name == "kernel_shape" for a in n.attribute)]
    attribute = next(a for a in one(rng, nodes).attribute if a.name == "kernel_shape")
    attribute.ints[:] = [k + 2 for k in attribute.ints]
    return True


@fault(42, "rejects")
def other_volume(made: Any, rng: Any) -> Any:
    nodes = made.nodes("Reshape")
    if not nodes:
        return False
    made.put(nodes[0].input[1], np.array([1, 7, 11], np.int64))
    return bool(rng.random() >= 0)


@fault(42, "rejects")
def unlike_shapes(made: Any, rng: Any) -> bool:
    nodes = made.nodes("Concat", "Add")
    if not nodes:
        return False
    node = one(rng, nodes)
    made.put("two_more", np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64))
    made.behind(node.input[0], "Pad", "two_more", reader=node)
    return True


@fault(44, "rejects")
def unsigned_bytes_inside(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    kind = TensorProto.FLOAT16 if made.half else TensorProto.FLOAT
    name = made.behind(conv.input[0], "Cast", reader=conv, to=TensorProto.UINT8)
    live = next(n for n in made.nodes("Conv") if n.input[0] == name)
    again = helper.make_node("Cast", [name], [f"{name}_float"], name="to_float", to=kind)
    live.input[0] = f"{name}_float"
    made.insert_before(live, again)
    return True


@fault(44, "rejects")
def sixteen_bit_table(made: Any, rng: Any) -> Any:
    made.put("table", np.arange(5, dtype=np.int16))
    return bool(rng.random() >= 0)


@fault(45, "rejects")
def dilated_pool(made: Any, rng: Any) -> bool:
    nodes = made.nodes("MaxPool")
    if not nodes:
        return False
    one(rng, nodes).attribute.append(helper.make_attribute("dilations", [1, 2]))
    return True


@fault(45, "rejects")
def indices_of_a_pool(made: Any, rng: Any) -> bool:
    nodes = made.nodes("MaxPool")
    if not nodes:
        return False
    one(rng, nodes).output.append("indices")
    return True


@fault(45, "rejects")
def training_dropout(made: Any, rng: Any) -> bool:
    conv = one(rng, made.nodes("Conv"))
    made.put("ratio", np.float32(0.5))
    made.put("training", np.bool_(True))
    made.behind(conv.input[0], "Dropout", "ratio", "training", reader=conv)
    return True
