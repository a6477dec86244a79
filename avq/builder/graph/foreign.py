"""Name operators that onnxruntime does not have, before a library calls the file damaged."""

from __future__ import annotations

import re

import onnx

from avq.builder.graph.standard import nodes_within
from avq.errors import ModelError

#: Domains with operators that onnxruntime has itself.
_KNOWN = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft"}
)
_OPSET = "export it again with standard operators only, opset 17 or newer"
_WITHOUT_NMS = "export it without NMS, with boxes and scores as outputs: avq suppresses boxes itself"
_BEFORE = "give the file from before onnxruntime optimised it"
_PLAIN_OUTPUTS = "export it without post-processing in the graph: boxes and scores as outputs"
#: (pattern of "domain::operator", whose operator it is, what to do); the first that fits counts.
_OWNERS: tuple[tuple[str, str, str], ...] = (
    (r"^com\.microsoft\.nchwc::", "onnxruntime wrote it for one kind of processor", _BEFORE),
    (r"^mmdeploy::|^mmcv::|^[^:]*::(MMCV|TRT)[A-Z]", "an operator of mmdeploy", _PLAIN_OUTPUTS),
    (
        r"_TRT$|^(TRT|trt|tensorrt|nvinfer1?|nvidia)(\.|::)|^[^:]*::(Efficient|Batched|Yolo)NMS",
        "a plugin of TensorRT",
        "export it without TensorRT's plugins",
    ),
    (r"^ai\.onnx\.contrib::|^com\.microsoft\.extensions::", "of onnxruntime-extensions", _PLAIN_OUTPUTS),
    (
        r"^(org\.pytorch\.)?aten::|::ATen$|^(pkg\.)?(torch|prim|torchvision|onnxscript)",
        "PyTorch left it untranslated",
        _OPSET,
    ),
    (r"^org\.openvinotoolkit::", "an operator of OpenVINO", _OPSET),
)


def refuse_foreign(model: onnx.ModelProto, *, where: str = "model") -> None:
    """Refuse operators that the reference runtime cannot compute.

    Raises:
        ModelError: names the operators, their nodes and owner, and what to do.
    """
    local = {(function.domain, function.name) for function in model.functions}
    found = [node for node in nodes_within(model) if not _is_known(node, local)]
    if not found:
        return
    kinds = list(dict.fromkeys((node.domain, node.op_type) for node in found))
    owner, fix = _owner(*kinds[0])
    if "nms" in kinds[0][1].lower():
        fix = _WITHOUT_NMS
    names = ", ".join(f"{op} of domain '{domain}'" if domain else op for domain, op in kinds[:4])
    places = ", ".join(f"'{node.name or next(iter(node.output), '')}'" for node in found[:4])
    raise ModelError(
        f"{where}: onnxruntime has no operator {names} ({owner})",
        seen=f"{len(found)} such node{'s' if len(found) > 1 else ''}: {places}",
        fix=fix,
    )


def _is_known(node: onnx.NodeProto, local: set[tuple[str, str]]) -> bool:
    if (node.domain, node.op_type) in local:
        return True
    if node.domain not in _KNOWN:
        return False
    # onnx has no schemas of com.microsoft; an operator missing there is found when the file is opened.
    return node.domain == "com.microsoft" or bool(onnx.defs.has(node.op_type, _bare(node.domain)))


def _bare(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _owner(domain: str, op: str) -> tuple[str, str]:
    for pattern, owner, fix in _OWNERS:
        if re.search(pattern, f"{domain}::{op}"):
            return owner, fix
    return "a custom operator", _OPSET
