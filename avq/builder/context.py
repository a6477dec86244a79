"""Everything of one build that no step changes: read once, passed to every step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from avq.builder.calibrate.calibration import Calibration
from avq.builder.cross_compile.target import CrossCompileTarget
from avq.builder.frontend.analyse import ModelAnalysis, analyse_model
from avq.builder.holdout import HoldoutSet
from avq.builder.labelled import accuracy, labels_of
from avq.builder.pictures.dataset import Pictures, open_pictures
from avq.builder.request import Request, check
from avq.builder.verdict_pictures import VerdictPictures, divide_pictures
from avq.errors import RefusedError
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Recipe


@dataclass(frozen=True)
class BuildContext:
    """Inputs of one build, read-only.

    Attributes:
        host: the installed plugins.
        request: the recipe with its strategy, engines and options as objects.
        analysis: the float model, its head, preprocessing and class names.
        pictures: the calibration and held-out pictures.
        holdout: pictures with the float model's outputs, on which plans and engines are compared.
        verdict: pictures on which the bundle is judged; None without boxes or pictures.
        calibration: activation statistics, counted on demand.
        target: the target whose engines are compiled ahead; None where engines run on this machine.
        reporter: progress, messages and warnings of the build.
    """

    host: PluginHost
    request: Request
    analysis: ModelAnalysis
    pictures: Pictures
    holdout: HoldoutSet
    verdict: VerdictPictures | None
    calibration: Calibration
    target: CrossCompileTarget | None
    reporter: Reporter

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe


def open_context(
    recipe: Recipe, host: PluginHost, reporter: Reporter, pool: WorkerPool | None = None
) -> BuildContext:
    """Resolve the recipe, read the pictures, analyse the model and run it over the held-out pictures.

    Raises:
        RequestError: a name, option or path of the recipe is wrong.
        MachineError: the target cannot be built on this machine.
        DataError: pictures are missing or damaged.
        ModelError: the model, its head or its preprocessing cannot be analysed.
    """
    request = replace(check(recipe, host), pool=pool or WorkerPool())
    pictures = open_pictures(recipe, reporter)
    if request.calibrates:
        pictures.require_distinct()
    analysis = analyse_model(request, pictures, reporter)
    holdout, verdict = divide_pictures(request, analysis, pictures, reporter)
    compiler = request.compiler
    return BuildContext(
        host=host,
        request=request,
        analysis=analysis,
        pictures=pictures,
        holdout=holdout,
        verdict=verdict,
        calibration=Calibration(request, analysis, pictures.calibration, reporter),
        target=CrossCompileTarget(request, compiler, analysis, holdout) if compiler is not None else None,
        reporter=reporter,
    )


def require_comparison(context: BuildContext) -> None:
    """Refuse a build whose accuracy cannot be judged, before time is spent on a search.

    Labels of a model without a decoded head are ignored; ``--no-gate`` skips the check of the float model.

    Raises:
        RequestError, DataError: as ``load_labels`` and ``Labels.match`` do.
        RefusedError: the float model detects nothing, or no labelled object.
    """
    recipe, holdout = context.recipe, context.holdout
    labels = labels_of(context.request, context.analysis.class_names)
    if labels is not None and holdout.float_detections is not None:
        labels.match(holdout.paths)
        reference = accuracy(labels, holdout.paths, holdout.float_detections)
        if recipe.gate and reference is not None and reference.map <= 0.0:
            raise RefusedError(
                "the float model detects no labelled object: no loss can be measured",
                seen=f"mAP 0 on {reference.images} pictures; labelled: {', '.join(labels.categories[:20])}",
                fix="check --map, --preprocess and that labels and pictures belong together; without --labels the "
                "boxes of the float model are compared",
            )
    if recipe.gate and recipe.labels is None and context.request.quantizer is not None:
        _require_boxes(context)


def _require_boxes(context: BuildContext) -> None:
    """Raise RefusedError where the float model has no confident box in any picture that it has seen."""
    verdict = context.verdict
    if verdict is None or not (verdict.own.firm_boxes or verdict.spare):
        context.holdout.require_boxes()
