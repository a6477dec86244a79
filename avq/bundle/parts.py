"""Names of the files in a bundle."""

from __future__ import annotations

MODEL = "model.onnx"
PLAN_JSON = "plan.json"
PLAN_ARRAYS = "plan.npz"
GOLDEN = "golden.npz"
#: The same network without INT8, where the build wrote one: what a vehicle times INT8 against.
TWIN = "float.onnx"
#: Engines compiled ahead, by compute capability: "engine.sm87".
ENGINE_PREFIX = "engine."
#: What DLA and TensorRT 10's own calibration take: no Q/DQ, ranges beside the file, precisions by layer name.
IMPLICIT = "implicit.onnx"
IMPLICIT_CACHE = "implicit.cache"
IMPLICIT_PRECISIONS = "implicit.json"
PROBE = "probe.onnx"
DRIFT = "drift.json"
REPORT = "report.html"
