"""Options that every strategy with calibrated ranges has."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GridOptions(BaseModel):
    """How activation ranges are chosen and written."""

    model_config = ConfigDict(extra="forbid")

    calibrator: Literal["auto", "entropy", "mse", "percentile", "minmax"] = Field(
        "auto", description="how activation ranges are chosen; auto scores all four and keeps the best"
    )
    activations: Literal["auto", "symmetric", "asymmetric"] = Field(
        "auto", description="grid of activations; auto is asymmetric on CPU targets, symmetric elsewhere"
    )

    def symmetric(self, *, symmetric_only: bool) -> bool:
        """Whether grids are signed around zero, on a target that takes nothing else or any."""
        return self.activations == "symmetric" or (self.activations == "auto" and symmetric_only)


class RangingOptions(GridOptions):
    """The same with one percentile; strategies add their own fields."""

    percentile: float = Field(
        99.99, gt=50.0, le=100.0, description="percent of values kept by calibrator=percentile"
    )
