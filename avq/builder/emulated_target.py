"""Emulation of a GPU that is not here: the unoptimised reference runs the exact bytes for its parser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import helper

from avq.builder.graph.edit import FreshNames, replace_nodes
from avq.errors import MachineError
from avq.hookspecs import CompilingEngine, Engine, Session
from avq.types import EnginePrecision, EngineStatus, SessionOptions

# FP16 and INT8 in one file need operator set 23; older runtimes run the same arithmetic with explicit casts.

_OPSET, _IR = 21, 10


def to_opset_21(model: bytes) -> bytes | None:
    """Return ``model`` in operator set 21 with bit-equal outputs; None where it has that set already."""
    proto = onnx.load_model_from_string(model)
    versions = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if all(entry.version <= _OPSET for entry in versions):
        return None
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    names = FreshNames(proto.graph)
    nodes = [new for node in proto.graph.node for new in _with_cast(node, types, names)]
    replace_nodes(proto.graph, nodes)
    for entry in versions:
        entry.version = _OPSET
    proto.ir_version = min(proto.ir_version, _IR)
    content: bytes = proto.SerializeToString()
    return content


def _with_cast(node: onnx.NodeProto, types: dict[str, int], names: FreshNames) -> list[onnx.NodeProto]:
    """Return the node and its cast; an Identity keeps onnxruntime from removing pairs of casts."""
    if node.op_type == "QuantizeLinear" and node.input[1] in types:
        source, same, wide = node.input[0], *_fresh(node.input[0], names)
        node.input[0] = wide
        return [_identity(source, same), _cast(same, wide, types[node.input[1]]), node]
    dtypes = [a for a in node.attribute if a.name == "output_dtype"]
    if node.op_type == "DequantizeLinear" and dtypes:
        result, same, wide = node.output[0], *_fresh(node.output[0], names)
        node.output[0] = wide
        node.attribute.remove(dtypes[0])
        return [node, _cast(wide, same, dtypes[0].i), _identity(same, result)]
    return [node]


def _fresh(tensor: str, names: FreshNames) -> tuple[str, str]:
    return names.fresh(f"{tensor}/same"), names.fresh(f"{tensor}/in_the_type_of_its_scale")


def _identity(source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [result], name=f"{source}/{result}/identity")


def _cast(source: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{source}/{result}/cast", to=to)


@dataclass(frozen=True)
class EmulatedEngine:
    """Replaces the target's engine in every check of accuracy; it is never timed."""

    compiler: CompilingEngine
    reference: Engine

    float_precisions: tuple[EnginePrecision, ...] = ("f32",)

    @property
    def name(self) -> str:
        return self.compiler.name

    def status(self) -> EngineStatus:
        return self.compiler.status()

    def encodings(self) -> tuple[str, ...]:
        return ("s8",)

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        """Open the exact bytes; the same arithmetic in older operators where the reference lacks kernels."""
        plain = replace(options, precision="f32", optimise=False)
        try:
            return self.reference.open(model, plain)
        except MachineError:
            older = to_opset_21(model if isinstance(model, bytes) else model.read_bytes())
            if older is None:
                raise
            return self.reference.open(older, plain)


def target_compiler(target: str, engines: Iterable[Engine]) -> CompilingEngine | None:
    """Return the engine of ``target`` when its models are compiled, here or on the vehicle; else None.

    A GPU on this machine changes nothing: bundles, checks and times are the same everywhere.
    """
    for engine in engines:
        if engine.name == target and isinstance(engine, CompilingEngine):
            return engine if engine.status().can_build or engine.compiles_on_target else None
    return None
