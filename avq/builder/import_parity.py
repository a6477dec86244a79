"""Compare an imported quantization with its source file, in the reference engine, before anything is staged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from avq.builder.context import BuildContext
from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.frontend.fold_input import source_picture
from avq.builder.holdout import drawn_inputs
from avq.builder.lift import Parity, has_integer_operators, in_qdq_form, prove, prove_operators
from avq.builder.lower import lower
from avq.builder.planning import reference_encoding
from avq.types import Edge, ImportedQuantization, QuantizationPlan

_DRAWN = 2
_REAL = 4


def prove_import(context: BuildContext) -> Parity | None:
    """Compare the source file with its import, as read, on drawn and real pictures.

    Options of a strategy come later: they may change the plan, and their cost is measured, not proven.

    Returns:
        None where nothing was imported, or where the file has faults that no plan can express.
    """
    analysis, request, holdout = context.analysis, context.request, context.holdout
    imported, foreign = analysis.imported, analysis.foreign
    if imported is None or foreign is None or foreign.errors:
        return None
    plan = plan_as_imported(analysis, foreign)
    lowered = lower(analysis.model.proto, plan, reference_encoding(plan))
    tensors = [i.tensor for i in drawn_inputs(analysis.spec, _DRAWN)]
    tensors += [i.tensor for i in holdout.inputs[:_REAL]] if holdout.items else []
    name = analysis.model.view.inputs[0].name
    feeds = [
        ({name: source_picture(analysis.source, tensor, analysis.spec)}, {name: tensor}) for tensor in tensors
    ]
    operators = None
    if has_integer_operators(imported.source):
        operators = prove_operators(imported.source, request.reference)
        if operators is not None and not operators.equal:
            return operators
    parity = prove(
        imported.source if operators is None else in_qdq_form(imported.source),
        lowered,
        request.reference,
        feeds,
        last_step=_last_steps(analysis, plan),
        threads=request.probe_threads,
    )
    if operators is None:
        return parity
    text = f"{operators.summary}; in that form, {parity.summary}"
    return replace(parity, exact=parity.exact and operators.exact, summary=text)


def is_import_changed(context: BuildContext, plan: QuantizationPlan) -> bool:
    """Whether options changed the quantization of the model file, so that its parity does not hold for ``plan``."""
    analysis = context.analysis
    imported, foreign = analysis.imported, analysis.foreign
    if imported is None or foreign is None:
        return False
    return bool(foreign.errors) or plan.points != foreign.points


def plan_as_imported(analysis: ModelAnalysis, foreign: ImportedQuantization) -> QuantizationPlan:
    """Return the plan with exactly the quantization of the file."""
    return QuantizationPlan(
        graph_digest=analysis.model.view.digest, points=foreign.points, overrides=foreign.overrides
    )


def _last_steps(analysis: ModelAnalysis, plan: QuantizationPlan) -> dict[str, float]:
    points = {name: plan.by_edge.get(Edge(name)) for name in analysis.model.view.output_names}
    return {name: float(np.max(point.scale)) for name, point in points.items() if point is not None}
