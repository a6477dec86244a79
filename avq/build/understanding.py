"""Understand the user's model with the tools a build has: sample pictures, an engine, plugin decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from avq.build.dataset import CalibrationSet
from avq.build.frontend import Understood, understand
from avq.build.graph import FloatModel
from avq.build.pictures import Pictures
from avq.build.request import FLOAT_STRATEGY, Request, check
from avq.hookspecs import Engine
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import U8, RawOutputs, Recipe, SessionOptions


def understand_model(
    request: Request, sample_pixels: Callable[[], Sequence[U8]], host: PluginHost, report: Reporter
) -> Understood:
    """Normalised graph, head, preprocessing and class names of the recipe's model, told to the user.

    Raises ModelError when the file, its head or its preprocessing cannot be made out.
    """
    recipe = request.recipe
    understood = understand(
        recipe.model,
        decoder=recipe.decoder,
        preprocess=recipe.preprocess,
        classes=recipe.classes,
        sample_pixels=sample_pixels,
        infer=_inference_by(request.reference, request.probe_threads),
        extra_decoders=host.decoders(),
    )
    for message in understood.messages:
        report.message(message)
    for warning in understood.warnings:
        report.warning(warning)
    return understood


def understand_alone(
    model: Path,
    pictures: CalibrationSet,
    host: PluginHost,
    report: Reporter,
    *,
    decoder: str | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    threads: int = 1,
) -> tuple[Request, Understood]:
    """The same for commands that only look at a model: calibrate, eval, inspect."""
    recipe = Recipe(
        model=model,
        output=Path(),
        data=pictures.folder,
        strategy=FLOAT_STRATEGY,
        target="onnxruntime",
        decoder=decoder,
        preprocess=preprocess,
        classes=classes,
        threads=threads,
    )
    request = check(recipe, host)
    samples = Pictures(pictures, pictures).samples
    return request, understand_model(request, samples, host, report)


def _inference_by(engine: Engine, threads: int) -> Callable[[FloatModel], Callable[[U8], RawOutputs]]:
    def open_model(model: FloatModel) -> Callable[[U8], RawOutputs]:
        session = engine.open(model.proto.SerializeToString(), SessionOptions(threads=threads))
        return session.infer

    return open_model
