"""Is an import the file it came from? Asked of the reference engine before anything is staged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from avq.builder.frontend.analyse import ModelAnalysis
from avq.builder.frontend.fold_input import normalise_picture
from avq.builder.holdout import HoldoutSet, drawn_inputs
from avq.builder.lift import Parity, prove
from avq.builder.lower import lower
from avq.builder.planning import reference_encoding
from avq.builder.request import Request
from avq.builder.verify import Verified
from avq.types import U8, AnyArray, Edge, ImportedQuantization, QuantizationPlan, Verdict

#: Pitfalls that lose boxes, and the option of ``qat`` that mends each.
_COSTS_BOXES = {
    "AVQ-Q05": "float_depthwise",
    "AVQ-Q25": "float_heads",
    "AVQ-Q26": "float_heads",
}
_DRAWN = 2
_REAL = 4


def prove_import(request: Request, analysis: ModelAnalysis, holdout: HoldoutSet) -> Parity | None:
    """The file against its import as it was read, on drawn and real pictures; None where nothing was imported.

    Options of a strategy come after: they may change the plan, and their cost is measured, not proven. A file
    with faults that no plan can say has no import to prove.
    """
    imported, foreign = analysis.imported, analysis.foreign
    if imported is None or foreign is None or foreign.errors:
        return None
    plan = plan_as_imported(analysis, foreign)
    lowered = lower(analysis.model.proto, plan, reference_encoding(plan))
    tensors = [i.tensor for i in drawn_inputs(analysis.spec, _DRAWN)]
    tensors += [i.tensor for i in holdout.inputs[:_REAL]] if holdout.items else []
    name = analysis.model.view.inputs[0].name
    feeds = [({name: _source_numbers(analysis, tensor)}, {name: tensor}) for tensor in tensors]
    return prove(
        imported.source,
        lowered,
        request.reference,
        feeds,
        last_step=_last_steps(analysis, plan),
        threads=request.probe_threads,
    )


def plan_as_imported(analysis: ModelAnalysis, foreign: ImportedQuantization) -> QuantizationPlan:
    """The plan that says what the file says, and nothing else."""
    return QuantizationPlan(
        graph_digest=analysis.model.view.digest, points=foreign.points, overrides=foreign.overrides
    )


def judged_by_parity(verified: Verified, parity: Parity | None, *, with_data: bool) -> Verified:
    """What the gate looks at: whether the import is proven, and no noise figure that was measured on nothing."""
    measured = verified.measured
    if parity is not None:
        measured = replace(measured, proven=parity.equal)
    return replace(verified, measured=measured if with_data else replace(measured, sqnr_db=None))


def with_parity(verdict: Verdict, parity: Parity | None) -> Verdict:
    """An import that is not what it came from is never accepted."""
    if parity is None:
        return verdict
    return replace(
        verdict, accepted=verdict.accepted and parity.equal, reasons=(*verdict.reasons, parity.said)
    )


def with_suggestions(
    verdict: Verdict, foreign: ImportedQuantization | None, asked: Mapping[str, object], *, in_model: bool
) -> Verdict:
    """What helps a refused import: the options that mend what it brought along, then what it was made from.

    Args:
        foreign: the quantization that was taken over; None where there was none.
        asked: options of the strategy that were given already.
        in_model: it stands in the model's own file, which other strategies do not take.
    """
    if verdict.accepted or foreign is None:
        return verdict
    mends: dict[str, list[str]] = {}
    for finding in foreign.findings:
        if finding.code in _COSTS_BOXES and _COSTS_BOXES[finding.code] not in asked:
            mends.setdefault(finding.fix, []).append(finding.code)
    first = [f"{fix} ({', '.join(codes)})" for fix, codes in mends.items()]
    others = [
        f"from the float model: {fix}" if in_model and fix.startswith("--strategy") else fix
        for fix in verdict.fixes
    ]
    return replace(verdict, fixes=tuple(dict.fromkeys([*first, *others])))


def _source_numbers(analysis: ModelAnalysis, tensor: U8) -> AnyArray:
    dtype = analysis.source.view.inputs[0].dtype
    if dtype == "uint8":
        return tensor
    return normalise_picture(tensor, analysis.spec).astype(dtype)


def _last_steps(analysis: ModelAnalysis, plan: QuantizationPlan) -> dict[str, float]:
    points = {name: plan.by_edge.get(Edge(name)) for name in analysis.model.view.output_names}
    return {name: float(np.max(point.scale)) for name, point in points.items() if point is not None}
