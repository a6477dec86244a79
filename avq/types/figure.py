"""A chart a strategy wants in the report: points on two axes, drawn by the host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FigurePoint:
    """One point; ``x_low`` and ``x_high`` are its 95 % interval, ``chosen`` marks the decision."""

    x: float
    y: float
    label: str = ""
    chosen: bool = False
    x_low: float | None = None
    x_high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together, in drawing order; ``line`` joins them."""

    name: str
    points: tuple[FigurePoint, ...]
    line: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with named axes, units in the labels.

    Attributes:
        title: heading of its section in the report.
        x_label, y_label: with units, as "time / float" or "lost boxes, %".
        series: drawn in order.
        lead: one sentence that says how to read it.
        y_limit: a horizontal line nobody should cross, such as the gate's; None for none.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    lead: str = ""
    y_limit: float | None = None
