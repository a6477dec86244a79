"""Quantization that a model brought with it, read from its file or from a file beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from avq.types.frame import AnyArray
from avq.types.plan import QuantPoint
from avq.types.report import Finding


@dataclass(frozen=True)
class Foreign:
    """What another tool decided, said in avq's terms; a strategy takes it over or refuses it.

    Attributes:
        dialect: who writes such files, such as "onnxruntime-qdq", "qonnx" or "aimet-1.0.0".
        producer: the file's own word for its author; '' when it has none.
        points: on edges of the float graph, activations and weights alike; no edge twice.
        overrides: constant name -> array that takes the place of the float graph's.
        findings: pitfalls, codes AVQ-Qnn; severity "error" is what no plan can say.
    """

    dialect: str
    producer: str = ""
    points: tuple[QuantPoint, ...] = ()
    overrides: Mapping[str, AnyArray] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that forbid taking the quantization over as it is."""
        return tuple(finding for finding in self.findings if finding.severity == "error")
