"""One file through the import, up to its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization

from avq.builder.lift import Imported, Parity, import_model, prove
from avq.builder.lower import lower
from avq.builder.planning import reference_encoding
from avq.engines import engine_by_name
from avq.errors import ModelError
from avq.types import Edge, QuantizationPlan
from tests.builder.lift.corpus.writer import pictures

ENGINE = engine_by_name("onnxruntime")


@dataclass(frozen=True)
class Ended:
    """How one import ended: "refused", "error" or "equal", the codes it told, and its proof."""

    ending: str
    codes: frozenset[str]
    parity: Parity | None = None
    imported: Imported | None = None


def lowered(imported: Imported) -> bytes:
    """The imported plan, written by the build's own writers in its reference encoding."""
    plan = QuantizationPlan(imported.model.view.digest, imported.foreign.points)
    return lower(imported.model.proto, plan, reference_encoding(plan))


def ended(model: onnx.ModelProto) -> Ended:
    try:
        imported = import_model(model, where="file")
    except ModelError as error:
        return Ended(
            "refused", frozenset(word for word in error.what.replace(":", " ").split() if "AVQ-Q" in word)
        )
    foreign = imported.foreign
    codes = frozenset(finding.code for finding in foreign.findings)
    if foreign.errors:
        return Ended("error", codes, imported=imported)
    plan = QuantizationPlan(imported.model.view.digest, foreign.points)
    steps = {name: plan.by_edge.get(Edge(name)) for name in imported.model.view.output_names}
    feeds = [({"x": picture}, {"x": picture}) for picture in pictures(3, seed=9)]
    parity = prove(
        imported.source,
        lowered(imported),
        ENGINE,
        feeds,
        last_step={name: float(np.max(p.scale)) for name, p in steps.items() if p is not None},
    )
    return Ended("equal" if parity.equal else "differs", codes, parity, imported)


def quantized_by_onnxruntime(
    model: onnx.ModelProto, feeds: Sequence[np.ndarray], folder: Path, **options: Any
) -> onnx.ModelProto:
    """The file that the exporter itself writes, calibrated on ``feeds``."""
    left, name = list(feeds), model.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return {name: left.pop()} if left else None

    onnx.save(model, str(folder / "float.onnx"))
    options = {"per_channel": True, **options}
    quantization.quantize_static(
        str(folder / "float.onnx"), str(folder / "quantized.onnx"), Reader(), **options
    )
    return onnx.load(str(folder / "quantized.onnx"))


def sqnr_db(meant: np.ndarray, actual: np.ndarray) -> float:
    noise = float(np.sum((meant.astype(np.float64) - actual) ** 2))
    return 10 * float(np.log10(float(np.sum(meant.astype(np.float64) ** 2)) / max(noise, 1e-30)))
