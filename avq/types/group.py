"""What a strategy knows of the operators that change precision together, for the report."""

from __future__ import annotations

from dataclasses import dataclass

from avq.types.plan import Precision


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One fusion group, or one layer where a strategy decides layer by layer. Unknown measures are None.

    Attributes:
        name: of its weighted operator.
        kind: "convolution", "depthwise", "matmul" and the like.
        precision: as chosen; reason: why, in numbers where there are any.
        nodes: how many operators it holds.
        sensitivity: ``PlanScore.badness`` of the network with this group alone in INT8.
        float_ns, int8_ns: measured nanoseconds of one inference, everything float and everything INT8.
        int8_gain: what INT8 adds to the network's time, as a share of the float time; negative is faster.
        boundary: what converting its inputs costs as chosen, as a share of the float time.
    """

    name: str
    kind: str
    precision: Precision
    reason: str = ""
    nodes: int = 1
    sensitivity: float | None = None
    float_ns: int | None = None
    int8_ns: int | None = None
    int8_gain: float | None = None
    boundary: float | None = None

    def row(self) -> dict[str, object]:
        """As a row of a table: times in microseconds, shares in percent."""
        return {
            "group": self.name,
            "kind": self.kind,
            "precision": self.precision,
            "nodes": self.nodes,
            "alone: badness": _rounded(self.sensitivity, 1.0, 5),
            "float us": _rounded(self.float_ns, 1e-3, 1),
            "INT8 us": _rounded(self.int8_ns, 1e-3, 1),
            "INT8 adds %": _rounded(self.int8_gain, 100.0, 2),
            "boundaries %": _rounded(self.boundary, 100.0, 2),
            "reason": self.reason,
        }


def _rounded(value: float | None, factor: float, digits: int) -> float | str:
    return "-" if value is None else round(value * factor, digits)
