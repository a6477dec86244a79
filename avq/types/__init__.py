"""Frozen dataclasses that plugins, the build and the daemon exchange. No I/O.

Those with arrays compare exactly and hold read-only arrays (``avq.types.arrays``).
"""

from __future__ import annotations

from avq.types.arrays import F32, F64, I64, U8, AnyArray
from avq.types.calibration import CALIBRATORS, Calibrator, MomentRequest, Range, StatRequest
from avq.types.engine import CompiledEngine, EnginePrecision, EngineStatus, LayerTime, SessionOptions
from avq.types.frame import (
    Detection,
    Detections,
    Frame,
    LatencyBudget,
    ModelInput,
    Published,
    RawOutputs,
    StageTimes,
)
from avq.types.graph import GraphView, NodeView, TensorView
from avq.types.plan import (
    Edge,
    GroupRow,
    ImportedQuantization,
    NodePrecision,
    Precision,
    QuantizationPlan,
    QuantPoint,
)
from avq.types.preprocess import DecoderSpec, PreprocessSpec
from avq.types.recipe import TARGETS, Recipe, Target
from avq.types.report import (
    Accepted,
    Accuracy,
    Answer,
    Fidelity,
    Figure,
    FigurePoint,
    Finding,
    Latency,
    MapLoss,
    MeasuredPlan,
    PlanScore,
    Series,
    TimeAnswer,
    Verdict,
)

# Names of release 0.1.0, kept for one release.
Foreign = ImportedQuantization
Served = MeasuredPlan

__all__ = [
    "Accepted",
    "CALIBRATORS",
    "F32",
    "F64",
    "I64",
    "TARGETS",
    "U8",
    "Accuracy",
    "Answer",
    "AnyArray",
    "Calibrator",
    "DecoderSpec",
    "Detection",
    "Detections",
    "Edge",
    "CompiledEngine",
    "EnginePrecision",
    "EngineStatus",
    "Fidelity",
    "Figure",
    "FigurePoint",
    "Finding",
    "Foreign",
    "Frame",
    "GraphView",
    "GroupRow",
    "ImportedQuantization",
    "Latency",
    "LatencyBudget",
    "LayerTime",
    "MapLoss",
    "MeasuredPlan",
    "ModelInput",
    "MomentRequest",
    "NodePrecision",
    "NodeView",
    "PlanScore",
    "Precision",
    "PreprocessSpec",
    "Published",
    "QuantPoint",
    "QuantizationPlan",
    "Range",
    "RawOutputs",
    "Recipe",
    "Series",
    "Served",
    "SessionOptions",
    "StageTimes",
    "StatRequest",
    "Target",
    "TensorView",
    "TimeAnswer",
    "Verdict",
]
