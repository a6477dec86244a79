"""The document of ``avq build``."""

from __future__ import annotations

from pydantic import Field

from avq.config.fields import (
    Count,
    Document,
    FilePath,
    NameOrFile,
    Names,
    OptionValue,
    Percent,
    PositiveNumber,
    Switch,
    Text,
)
from avq.types import Recipe


class RecipeFile(Document):
    """What ``avq build`` is asked for; every key may also be a flag, which wins."""

    model: FilePath = Field(title="Model", description="the float ONNX file")
    output: FilePath = Field(title="Output", description="the bundle folder to write")
    data: FilePath | None = Field(
        default=None, title="Data", description="calibration pictures: a folder or a set"
    )
    strategy: Text = Field(default="static", title="Strategy", description="a registered quantizer, or float")
    target: Text = Field(
        default="cpu",
        title="Target",
        description="what the bundle must run on: cpu, or the name of an engine",
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict, title="Options", description="the strategy's own options"
    )
    budget_ms: PositiveNumber | None = Field(
        default=None, title="Latency budget", description="wanted p50 of the engine, milliseconds"
    )
    max_drop: Percent | None = Field(
        default=None, title="Tolerated loss", description="percent: relative mAP with labels, else lost boxes"
    )
    gate: Switch = Field(
        default=True, title="Gate", description="false writes a refused bundle, accepted:false"
    )
    labels: FilePath | None = Field(default=None, title="Labels", description="COCO json for the pictures")
    map: dict[str, Names] = Field(
        default_factory=dict, title="Class map", description="label category = list of model classes"
    )
    calibration: FilePath | None = Field(
        default=None, title="Calibration", description="an .avqcal file instead of a calibration pass"
    )
    decoder: Text | None = Field(default=None, title="Decoder", description="head family, or none")
    preprocess: NameOrFile | None = Field(
        default=None, title="Preprocessing", description="preset name or JSON file"
    )
    classes: NameOrFile | None = Field(default=None, title="Classes", description="class-name file, or coco")
    threads: Count = Field(
        default=1, title="Threads", description="threads of the engine, in timing and service"
    )
    gpu_arch: tuple[Text, ...] = Field(
        default=(),
        title="GPU architectures",
        description='compute capabilities for GPU targets, such as ["sm89"]',
    )
    dla: Switch = Field(
        default=False,
        title="DLA",
        description="also write what DLA and TensorRT 10's own calibration take; for tensorrt",
    )

    def recipe(self) -> Recipe:
        """The same as the build's own type."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Recipe(class_map=values.pop("map"), **values)
