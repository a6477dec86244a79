"""Pitfalls of side files, by number: how grave, what it is, why it matters, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avq.types import Finding


@dataclass(frozen=True, slots=True)
class Pitfall:
    """One row: "error" cannot be taken over as it is, "warning" costs something, "info" is good to know."""

    code: str
    severity: str
    what: str
    why: str
    fix: str


_ROWS = (
    Pitfall(
        "AVQ-Q50",
        "warning",
        "names that the model does not have",
        "their grids belong to no tensor and are left out",
        "take the file that was written beside this very model, or rename the entries",
    ),
    Pitfall(
        "AVQ-Q51",
        "error",
        "scale, offset and range do not agree",
        "min and max tell another grid than scale and offset, and nothing says which one is meant",
        "correct the entry, or --option drop=true takes it as not written",
    ),
    Pitfall(
        "AVQ-Q52",
        "warning",
        "offsets above zero",
        "old files print them one off and with the other sign; min and scale tell the true one, which is used",
        "write the file again with AIMET 1.20 or newer",
    ),
    Pitfall(
        "AVQ-Q53",
        "warning",
        "scales that are zero, negative, denormal or not finite",
        "no grid has them; the tensors are treated as if the file did not name them",
        "calibrate these tensors again; a scale of zero usually means that a tensor never moved",
    ),
    Pitfall(
        "AVQ-Q54",
        "info",
        "tensors that the file keeps in floating point or in 32 bits",
        "they get no quantizer; biases in the accumulator's scale stay as exact in float",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q55",
        "error",
        "grids that no plan can say",
        "scales of scales, grids shifted by half a step, one-bit grids, offsets outside of the grid",
        "export plain INT8 encodings, per tensor or per channel, or --option drop=true takes it as not written",
    ),
    Pitfall(
        "AVQ-Q56",
        "error",
        "scales that do not fit their tensor",
        "their number is not that of the channels along the axis that the operator quantizes",
        "take the file that was written beside this very model, or --option drop=true",
    ),
    Pitfall(
        "AVQ-Q57",
        "info",
        "tensors that no integer operator reads",
        "a calibration cache names every tensor; a quantizer helps only in front of weighted operators",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q58",
        "info",
        "weighted operators that the file leaves open",
        "it does not name everything they read",
        "they stay float: add --data to calibrate what is missing, or name their inputs and weights",
    ),
    Pitfall(
        "AVQ-Q59",
        "warning",
        "weights that do not fit their grid",
        "values reach more than twice as far as the grid, so they would be clipped: was a batch normalisation "
        "folded after the file was written?",
        "write the encodings after folding",
    ),
    Pitfall(
        "AVQ-Q60",
        "info",
        "operators of the head",
        "a calibration cache says how to quantize, not where, so avq's own rule holds: they stay float",
        "nothing to do",
    ),
)

PITFALLS: dict[str, Pitfall] = {row.code: row for row in _ROWS}

#: Places named in one finding; the rest is counted.
_SHOWN = 8


def finding(
    code: str, places: Sequence[str], *, severity: str | None = None, fix: str | None = None
) -> Finding:
    """The pitfall as it was met: how often, and the first places."""
    row = PITFALLS[code]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    seen = f"{len(places)}: {', '.join(places[:_SHOWN])}{more}"
    return Finding(severity or row.severity, code, f"{row.what}: {row.why}", seen, fix or row.fix)
