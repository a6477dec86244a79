"""Put a bundle together in its staging folder, beside where it will lie."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnx

from avq import __version__
from avq.builder.calibrate.calibration import Calibration
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.holdout import HoldoutSet
from avq.builder.index_selection import chosen_rows
from avq.builder.lint import lint_errors
from avq.builder.lower import lower, saturation_probe
from avq.builder.pictures.dataset import Item, Pictures, read_picture
from avq.builder.planning import Planned
from avq.builder.request import Request
from avq.builder.trials.bench import FLOAT, Trial
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
    staging_folder,
    write_staged,
)
from avq.bundle.plan import plan_to_parts
from avq.engines.cpu import instruction_set
from avq.errors import AvqError
from avq.hookspecs import Engine, Session
from avq.measure.drift import MIN_REFERENCE, fit_reference
from avq.measure.golden import limit_of
from avq.preprocess import Preprocessor
from avq.progress import Reporter
from avq.toolbox.assemble import int8_mac_share
from avq.types import U8, AnyArray, Finding, PreprocessSpec, QuantizationPlan, SessionOptions

GOLDEN_FRAMES = 4
_HARDLY_CHANGED = 4


@dataclass(frozen=True)
class Staged:
    """A bundle that nobody serves yet.

    Attributes:
        folder: the staging folder.
        manifest: sealed, accepted False until the gate has spoken.
        int8_mac_share: share of multiply-adds with eight-bit data and weights.
        lint: what its engine would reject or misread; errors only.
    """

    folder: Path
    manifest: Manifest
    int8_mac_share: float
    lint: tuple[Finding, ...] = ()


def stage(
    request: Request,
    analysis: ModelAnalysis,
    calibration: Calibration,
    planned: Planned,
    chosen: Trial,
    holdout: HoldoutSet,
    extra: Mapping[str, bytes],
    *,
    linted: tuple[Finding, ...] | None = None,
) -> Staged:
    """Write every part but the report, ``extra`` ones (engines, the drift probe) too; accepted: false.

    ``linted`` is what lint said of the very same model, where it has been asked.
    """
    plan, candidate = planned.plan, chosen.candidate
    proto = analysis.model.proto
    float_model = proto.SerializeToString()
    model = float_model if candidate.encoding == FLOAT else lower(proto, plan, candidate.encoding)
    golden = _golden(model, chosen, request, holdout, float_model)
    parts: dict[str, bytes | Path] = {MODEL: model, GOLDEN: golden}
    parts |= extra
    if plan.points:
        parts[PLAN_JSON], parts[PLAN_ARRAYS] = plan_to_parts(plan)
    folder = staging_folder(request.recipe.output)
    manifest = write_staged(folder, _manifest(request, analysis, calibration, planned, chosen), parts)
    share = int8_mac_share(analysis.model.view, plan)
    found = lint_errors(model, request.recipe.target) if linted is None else linted
    return Staged(folder, manifest, share, found)


def _manifest(
    request: Request, analysis: ModelAnalysis, calibration: Calibration, planned: Planned, chosen: Trial
) -> Manifest:
    view, used = analysis.model.view, calibration.used
    engine = request.float_engines[chosen.candidate.engine]
    plan = planned.plan
    return Manifest(
        avq_version=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        accepted=False,
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
        isa="" if request.compiler is not None else instruction_set(),
        input=view.inputs[0],
        outputs=view.outputs,
        preprocess=analysis.spec,
        decoder=analysis.decoder,
        class_names=analysis.class_names,
        graph_digest=view.digest,
        plan_digest=plan.digest if plan.points else "",
        calibration=CalibrationUse(images=len(used.images), digest=used.digest) if used is not None else None,
    )


def _golden(model: bytes, chosen: Trial, request: Request, holdout: HoldoutSet, float_model: bytes) -> bytes:
    """Inputs with the engine's own answers: what a start-up or another machine compares itself with."""
    candidate = chosen.candidate
    options = SessionOptions(threads=request.recipe.threads, precision=candidate.precision)
    tensors = [model_input.tensor for model_input in holdout.inputs[:GOLDEN_FRAMES]]
    rows = chosen_rows(float_model, lambda content: _reference(request, content), tensors)
    arrays: dict[str, AnyArray] = rows.as_arrays()
    session: Session = request.float_engines[candidate.engine].open(model, options)
    try:
        limit_db = limit_of(candidate.engine, chosen.runs_in)
        for index, tensor in enumerate(tensors):
            arrays[f"input_{index}"] = tensor
            outputs = _told(session, tensor)
            arrays |= {f"output_{index}:{name}": value for name, value in outputs.items()}
            if rows.places:
                again = [_told(session, other) for other in _hardly_changed(tensor)]
                arrays |= rows.stable_rows(index, outputs, again, limit_db)
    finally:
        session.close()
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def _reference(request: Request, model: bytes) -> Session:
    return request.reference.open(model, SessionOptions(threads=request.probe_threads, optimise=False))


def _told(session: Session, tensor: U8) -> dict[str, AnyArray]:
    return {name: np.array(value) for name, value in session.infer(tensor).items()}


def _hardly_changed(tensor: U8) -> list[U8]:
    """Each value by a level at most: enough for other roundings all over a network of eight bits."""
    random = np.random.default_rng(0)
    noise = random.integers(-1, 2, (_HARDLY_CHANGED, *tensor.shape))
    return list(np.clip(tensor + noise, 0, 255).astype(np.uint8))


# The bundle's drift parts: the probe, and what it says of the pictures the ranges were made from.

#: More pictures would sharpen the threshold little: one in a hundred usual pictures is seen from here on.
MAX_PICTURES = 100


def drift_parts(
    request: Request, analysis: ModelAnalysis, plan: QuantizationPlan, pictures: Pictures, report: Reporter
) -> dict[str, bytes]:
    """probe.onnx and drift.json; nothing for plans without static ranges, no drift.json for few pictures.

    Held-out pictures come first: nothing was fitted to them.
    """
    probe: onnx.ModelProto = saturation_probe(analysis.model.proto, plan)
    if not plan.points or not probe.graph.output:  # with float data there is no range to leave
        return {}
    parts = {PROBE: probe.SerializeToString()}
    known = {item.sha256: item for item in (*pictures.held_out.items, *pictures.calibration.items)}
    items = list(known.values())[:MAX_PICTURES]
    if len(items) < MIN_REFERENCE:
        report.message(f"no drift reference: {len(items)} pictures are too few, it takes {MIN_REFERENCE}")
        return parts
    try:
        rows = probe_ratios(
            parts[PROBE], request.reference, analysis.spec, items, report, threads=request.probe_threads
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
    """The probe's outputs per picture, in order."""
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
