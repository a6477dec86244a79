"""Understand the user's model with the tools a build has: sample pictures, an engine, plugin decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from avq.builder.graph.model import FloatModel
from avq.builder.pictures.dataset import CalibrationSet
from avq.builder.pictures.split import Pictures
from avq.builder.request import FLOAT_STRATEGY, Request, reference_engine
from avq.builder.understand.frontend import Understood, understand
from avq.hookspecs import Engine, Session
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import U8, AnyArray, RawOutputs, Recipe, SessionOptions


def understand_model(
    request: Request, sample_pixels: Callable[[], Sequence[U8]], report: Reporter
) -> Understood:
    """Normalised graph, head, preprocessing and class names of the recipe's model, told to the user.

    Raises ModelError when the file, its head or its preprocessing cannot be made out.
    """
    recipe = request.recipe
    trials = _TrialSessions(request.reference)
    try:
        understood = understand(
            recipe.model,
            decoder=recipe.decoder,
            preprocess=recipe.preprocess,
            classes=recipe.classes,
            sample_pixels=sample_pixels,
            infer=trials.open,
            extra_decoders=request.families,
            imports=request.imports,
        )
    finally:
        trials.close()
    for message in understood.messages:
        report.message(message)
    for warning in understood.warnings:
        report.warning(warning)
    return understood


class _TrialSessions:
    """Float models opened to try preprocessings on, one thread each; closed when the trial is over."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: list[Session] = []

    def open(self, model: FloatModel) -> Callable[[AnyArray], RawOutputs]:
        session = self._engine.open(model.proto.SerializeToString(), SessionOptions())
        self._sessions.append(session)
        name = model.view.inputs[0].name
        return lambda values: session.run({name: values})

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()


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
    reference = reference_engine(host)
    alone = {reference.name: reference}
    request = Request(recipe, None, None, alone, alone, reference, host.decoders())
    samples = Pictures(pictures, pictures).samples
    return request, understand_model(request, samples, report)
