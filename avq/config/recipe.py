"""The recipe file of ``avq build``."""

from __future__ import annotations

from typing import Literal

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
    """Request of ``avq build``. Every key is also a flag; the flag overrides the file."""

    model: FilePath = Field(title="Model", description="float ONNX file")
    output: FilePath = Field(title="Output", description="bundle folder to write")
    data: FilePath | None = Field(
        default=None, title="Data", description="calibration pictures: a folder, or a set with index.csv"
    )
    strategy: Text = Field(
        default="static", title="Strategy", description="name of a quantizer plugin, or float"
    )
    target: Text = Field(
        default="cpu",
        title="Target",
        description="runtime to build for: cpu, or the name of an engine",
    )
    options: dict[str, OptionValue] = Field(
        default_factory=dict, title="Options", description="options of the strategy"
    )
    budget_ms: PositiveNumber | None = Field(
        default=None, title="Latency budget", description="limit for the engine's p50 in milliseconds"
    )
    max_drop: Percent | None = Field(
        default=None,
        title="Tolerated loss",
        description="percent: relative mAP with labels, otherwise lost boxes",
    )
    gate: Switch | Literal["full", "accuracy"] = Field(
        default="full",
        title="Gate",
        description="full; accuracy: time is not judged; false: write a refused bundle too, with accepted:false",
    )
    force: Switch = Field(
        default=False, title="Force", description="replace an accepted bundle of another model"
    )
    labels: FilePath | None = Field(
        default=None, title="Labels", description="COCO JSON labels of the pictures"
    )
    map: dict[str, Names] = Field(
        default_factory=dict, title="Class map", description="label category = list of model classes"
    )
    calibration: FilePath | None = Field(
        default=None, title="Calibration", description=".avqcal file to use instead of a calibration pass"
    )
    decoder: Text | None = Field(default=None, title="Decoder", description="detection head family, or none")
    preprocess: NameOrFile | None = Field(
        default=None,
        title="Preprocessing",
        description="preset name, text such as stretch,RGB,0..1, or JSON file",
    )
    classes: NameOrFile | None = Field(
        default=None, title="Classes", description="file with class names, or coco"
    )
    threads: Count = Field(
        default=1, title="Threads", description="number of engine threads, in timing and service"
    )
    gpu_arch: tuple[Text, ...] = Field(
        default=(),
        title="GPU architectures",
        description='compute capabilities of GPU targets, such as ["sm89"]',
    )
    dla: Switch = Field(
        default=False,
        title="DLA",
        description="also write what a DLA build and TensorRT 10's calibration need; target tensorrt",
    )

    def recipe(self) -> Recipe:
        """Return the values as the type that the build takes."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {"gate": self.gate is not False, "judge_time": self.gate != "accuracy"}
        return Recipe(class_map=values.pop("map"), **values)
