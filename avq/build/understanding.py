"""Understand the user's model with the tools a build has: sample pictures, an engine, plugin decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from avq.build.dataset import CalibrationSet
from avq.build.frontend import Understood, understand
from avq.build.graph import FloatModel
from avq.build.pictures import Pictures
from avq.build.request import FLOAT_STRATEGY, Request, check
from avq.hookspecs import Engine, Session
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
    trials = _TrialSessions(request.reference, request.probe_threads)
    try:
        understood = understand(
            recipe.model,
            decoder=recipe.decoder,
            preprocess=recipe.preprocess,
            classes=recipe.classes,
            sample_pixels=sample_pixels,
            infer=trials.open,
            extra_decoders=host.decoders(),
        )
    finally:
        trials.close()
    for message in understood.messages:
        report.message(message)
    for warning in understood.warnings:
        report.warning(warning)
    return understood


class _TrialSessions:
    """Opens one float model at a time: each costs as much memory as the network itself."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine, self._options = engine, SessionOptions(threads=threads)
        self._session: Session | None = None

    def open(self, model: FloatModel) -> Callable[[U8], RawOutputs]:
        self.close()
        self._session = self._engine.open(model.proto.SerializeToString(), self._options)
        return self._session.infer

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


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
