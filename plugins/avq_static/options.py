"""Options of ``static``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from avq.toolbox import GridOptions


class StaticOptions(GridOptions):
    """Options of ``static``; every ``auto`` measures and keeps a change that measurably helps."""

    percentile: Annotated[float, Field(gt=50.0, le=100.0)] | Literal["auto"] = Field(
        "auto", description="percent of values kept by calibrator=percentile; auto searches"
    )
    depthwise: Literal["auto", "int8", "float"] = Field(
        "auto", description="depthwise convolutions in INT8, float, or whichever the measurement prefers"
    )
    bits: int = Field(8, ge=2, le=8, description="bits of weights; activations have 8")
    weights: Literal["auto", "minmax", "mse"] = Field(
        "auto", description="scales of weights: largest value, least squares, or least squares up to 6 bits"
    )
    equalize: Literal["auto", "on", "off"] = Field(
        "auto", description="scale channels between convolutions joined by ReLU, LeakyReLU or nothing"
    )
    rounding: Literal["auto", "gram", "nearest"] = Field(
        "auto", description="weights rounded up or down for the least output error, or to nearest"
    )
    bias_correction: Literal["auto", "on", "off"] = Field(
        "auto", description="restore the mean of an output that quantized weights shift"
    )
