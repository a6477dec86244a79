"""Write a bundle into its staging folder, in the parent folder of its destination."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx
from msgspec import UNSET

from avq import __version__
from avq.builder.context import BuildContext
from avq.builder.index_selection import selected_rows
from avq.builder.lint import lint_errors
from avq.builder.lower import saturation_probe
from avq.builder.pictures.dataset import Item, read_picture
from avq.builder.planning import Planned
from avq.builder.request import Request
from avq.builder.trials.serving import Trial, model_for, open_candidate
from avq.bundle import (
    DRIFT,
    GOLDEN,
    MODEL,
    PLAN_ARRAYS,
    PLAN_JSON,
    PROBE,
    CalibrationUse,
    EngineUse,
    Manifest,
    StrategyUse,
    is_bundle,
    open_bundle,
    require_replaceable,
    staging_folder,
    write_staged,
)
from avq.bundle.plan import plan_to_parts
from avq.engines.cpu import instruction_set
from avq.errors import AvqError, RequestError
from avq.hookspecs import Engine, Session
from avq.measure.drift import MIN_REFERENCE, fit_reference
from avq.measure.golden import limit_of
from avq.preprocess import Preprocessor
from avq.progress import Reporter
from avq.toolbox.assemble import int8_mac_share
from avq.types import U8, AnyArray, Finding, PreprocessSpec, QuantizationPlan, Recipe, SessionOptions

GOLDEN_FRAMES = 4
_HARDLY_CHANGED = 4


@dataclass(frozen=True)
class Staged:
    """A bundle in its staging folder, not yet accepted.

    Attributes:
        folder: the staging folder.
        manifest: sealed, with accepted False.
        int8_mac_share: share of multiply-adds with eight-bit data and weights.
        lint: errors that the target's parser would raise.
    """

    folder: Path
    manifest: Manifest
    int8_mac_share: float
    lint: tuple[Finding, ...] = ()


def stage(
    context: BuildContext,
    planned: Planned,
    chosen: Trial,
    extra: Mapping[str, bytes],
    lint: tuple[Finding, ...] | None,
) -> Staged:
    """Write every part but the report, with accepted False.

    Args:
        context: the build.
        planned: the final plan.
        chosen: the candidate to stage.
        extra: further parts by name: compiled engines, DLA parts, the drift probe.
        lint: errors of this very model where lint ran already; None to run it here.
    """
    plan, encoding = planned.plan, chosen.candidate.encoding
    proto = context.analysis.model.proto
    model = model_for(proto, plan, encoding)
    parts: dict[str, bytes | Path] = {MODEL: model, GOLDEN: _golden(model, chosen, context), **extra}
    if plan.points:
        parts[PLAN_JSON], parts[PLAN_ARRAYS] = plan_to_parts(plan)
    folder = staging_folder(context.recipe.output)
    manifest = write_staged(folder, _manifest(context, plan, chosen), parts)
    share = int8_mac_share(context.analysis.model.view, plan)
    return Staged(
        folder, manifest, share, lint_errors(model, context.recipe.target) if lint is None else lint
    )


def _manifest(context: BuildContext, plan: QuantizationPlan, chosen: Trial) -> Manifest:
    request, analysis, used = context.request, context.analysis, context.calibration.used
    view = analysis.model.view
    engine = request.float_engines[chosen.candidate.engine]
    return Manifest(
        avq_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        accepted=False,
        source_digest=source_digest(request.recipe),
        strategy=StrategyUse(name=request.recipe.strategy, owner=plan.owner, version=plan.owner_version),
        target=request.recipe.target,
        engine=EngineUse(
            name=engine.name,
            version=engine.status().version,
            precision=chosen.runs_in,
            float_precision=chosen.candidate.precision,
            threads=request.recipe.threads,
            encoding=chosen.candidate.encoding if plan.points else "",
        ),
        isa="" if context.target is not None else instruction_set(),
        input=view.inputs[0],
        outputs=view.outputs,
        preprocess=analysis.spec,
        decoder=analysis.decoder,
        decoder_package=request.decoder_packages.get(analysis.decoder.family, UNSET),
        class_names=analysis.class_names,
        graph_digest=view.digest,
        plan_digest=plan.digest if plan.points else "",
        calibration=CalibrationUse(images=len(used.images), digest=used.digest) if used is not None else None,
    )


def source_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of the model file."""
    return hashlib.sha256(recipe.model.read_bytes()).hexdigest()


def rejected_folder(output: Path) -> Path:
    """Return where a refused build leaves its bundle and report."""
    return output.with_name(f"{output.name}.rejected")


def require_same_source(recipe: Recipe) -> None:
    """Raise RequestError where the build would replace an accepted bundle of another model, unless forced.

    Bundles of releases that noted no source are replaced as before. Raises BundleError where ``OUTPUT.rejected``
    holds something that is not a bundle.
    """
    require_replaceable(rejected_folder(recipe.output))
    if recipe.force or not is_bundle(recipe.output) or not recipe.model.is_file():
        return
    try:
        old = open_bundle(recipe.output, allow_unaccepted=True).manifest
    except AvqError:
        return  # a damaged bundle is no loss
    if old.accepted is not False and old.source_digest not in (UNSET, source_digest(recipe)):
        raise RequestError(
            f"{recipe.output} holds an accepted bundle of another model",
            seen=f"built {old.created} from a model with SHA-256 {str(old.source_digest)[:12]}",
            fix="choose another -o, or replace it with --force",
        )


def _golden(model: bytes, chosen: Trial, context: BuildContext) -> bytes:
    """Return inputs with the engine's outputs: start-up checks and other machines compare with them."""
    request, float_model = context.request, context.analysis.model.proto.SerializeToString()
    tensors = [model_input.tensor for model_input in context.holdout.inputs[:GOLDEN_FRAMES]]
    rows = selected_rows(float_model, lambda content: _reference(request, content), tensors)
    arrays: dict[str, AnyArray] = rows.as_arrays()
    session = open_candidate(request, chosen.candidate, model)
    try:
        limit_db = limit_of(chosen.candidate.engine, chosen.runs_in)
        for index, tensor in enumerate(tensors):
            arrays[f"input_{index}"] = tensor
            outputs = _outputs(session, tensor)
            arrays |= {f"output_{index}:{name}": value for name, value in outputs.items()}
            if rows.places:
                again = [_outputs(session, other) for other in _hardly_changed(tensor)]
                arrays |= rows.stable_rows(index, outputs, again, limit_db)
    finally:
        session.close()
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def _reference(request: Request, model: bytes) -> Session:
    return request.reference.open(model, SessionOptions(threads=request.probe_threads, optimise=False))


def _outputs(session: Session, tensor: U8) -> dict[str, AnyArray]:
    return {name: np.array(value) for name, value in session.infer(tensor).items()}


def _hardly_changed(tensor: U8) -> list[U8]:
    """Change each value by at most one level: enough to flip roundings all over an INT8 network."""
    random = np.random.default_rng(0)
    noise = random.integers(-1, 2, (_HARDLY_CHANGED, *tensor.shape))
    return list(np.clip(tensor + noise, 0, 255).astype(np.uint8))


#: More pictures would sharpen the threshold little: quantiles of one in a hundred need no more.
MAX_PICTURES = 100


def drift_parts(plan: QuantizationPlan, context: BuildContext) -> dict[str, bytes]:
    """Return probe.onnx and drift.json: the saturation probe, and its outputs on the build's pictures.

    Nothing for plans without static ranges, no drift.json for few pictures. Held-out pictures come first:
    nothing was fitted to them.
    """
    report, pictures = context.reporter, context.pictures
    probe: onnx.ModelProto = saturation_probe(context.analysis.model.proto, plan)
    if not plan.points or not probe.graph.output:  # float data has no range to leave
        return {}
    parts = {PROBE: probe.SerializeToString()}
    unique = {item.sha256: item for item in (*pictures.held_out.items, *pictures.calibration.items)}
    items = list(unique.values())[:MAX_PICTURES]
    if len(items) < MIN_REFERENCE:
        report.message(f"no drift reference: {len(items)} pictures are too few, it needs {MIN_REFERENCE}")
        return parts
    try:
        rows = probe_ratios(
            parts[PROBE],
            context.request.reference,
            context.analysis.spec,
            items,
            report,
            threads=context.request.probe_threads,
        )
    except AvqError as error:
        report.warning(f"no drift reference: {error.what}")
        return parts
    return {**parts, DRIFT: fit_reference(rows).to_json()}


def probe_ratios(
    probe: bytes,
    engine: Engine,
    spec: PreprocessSpec,
    items: Sequence[Item],
    report: Reporter,
    *,
    threads: int,
) -> list[Mapping[str, float]]:
    """Run the saturation probe; return its outputs per picture, in order."""
    preprocessor = Preprocessor(spec)
    session = engine.open(probe, SessionOptions(threads=threads))
    try:
        return [
            {
                name: float(value)
                for name, value in session.infer(preprocessor.prepare(read_picture(item)).tensor).items()
            }
            for item in report.track(items, "drift", len(items))
        ]
    finally:
        session.close()
