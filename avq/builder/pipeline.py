"""One build, forward only; ``run_build`` is its diagram."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from avq.builder.calibrate.calibration import Calibration
from avq.builder.calibrate.ranges import HistogramStats
from avq.builder.cross_compile.dla import implicit_parts, with_ranges
from avq.builder.cross_compile.target import Compiled, cross_compile_target
from avq.builder.diagnose import find_cause, left_float
from avq.builder.frontend.analyse import ModelAnalysis, analyse_model
from avq.builder.gate import Limits, judge
from avq.builder.holdout import HoldoutSet, prepare_holdout
from avq.builder.import_parity import judged_by_parity, prove_import, with_parity, with_suggestions
from avq.builder.labelled import check_labels
from avq.builder.outcome import Outcome
from avq.builder.pictures.dataset import open_pictures
from avq.builder.planning import Planned, make_plan
from avq.builder.report import ReportData, report_page
from avq.builder.request import Request, check
from avq.builder.stage import Staged, drift_parts, stage
from avq.builder.trials.bench import Bench, Trial, candidates_for, fastest_first
from avq.builder.trials.layer_times import layer_costs
from avq.builder.verify import Verified, verify
from avq.bundle import REPORT, publish, write_staged
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import Finding, Recipe, Verdict


def run_build(recipe: Recipe, host: PluginHost, report: Reporter, pool: WorkerPool | None = None) -> Outcome:
    """Analyse, calibrate, plan, lower, try every engine, stage, verify, gate, rename.

    Raises AvqError leaves for wrong requests. A gate that refuses is an Outcome, not an error: the staging
    folder and its report stay.
    """
    started_s = time.monotonic()
    request = replace(check(recipe, host), pool=pool or WorkerPool())
    pictures = open_pictures(recipe, report)
    analysis = analyse_model(request, pictures.samples, report)
    holdout = prepare_holdout(request, analysis, pictures, report)
    check_labels(request, analysis.class_names, holdout)
    if recipe.gate and recipe.labels is None:
        holdout.require_boxes()
    calibration = Calibration(request, analysis, pictures.calibration, report)
    planned = make_plan(request, analysis, calibration, holdout, host, report)
    parity = prove_import(request, analysis, holdout)
    pending, compiled = cross_compile_target(request, analysis, holdout), Compiled()
    if pending is not None:
        planned = replace(planned, plan=pending.finished(planned.plan))
        compiled = pending.compile(planned.plan, report)
        trials: Sequence[Trial] = [pending.trial(planned.plan)]
        ranked = trials
    else:
        trials = _try_engines(request, analysis, planned, holdout, report)
        ranked = fastest_first(trials, planned.plan, request)

    plan = with_ranges(request, analysis, planned.plan, calibration, holdout)
    planned = replace(planned, plan=plan)
    extra = {
        **compiled.parts,
        **implicit_parts(request, analysis, plan),
        **drift_parts(request, analysis, plan, pictures, report),
    }
    limits = Limits(recipe.max_drop, recipe.budget_ms, tuple(q.name for q in host.quantizers()))

    def attempt(trial: Trial) -> _Attempt:
        staged = stage(request, analysis, calibration, planned, trial, holdout, extra, linted=compiled.lint)
        verified = verify(staged, request, holdout, trial)
        verified = judged_by_parity(verified, parity, with_data=recipe.data is not None)
        verdict = with_parity(judge(verified.measured, limits), parity)
        verdict = replace(verdict, reasons=(*verdict.reasons, *planned.conclusions))
        return _Attempt(trial, staged, verified, _with_findings(verdict, staged, host, recipe))

    final = _first_accepted(ranked, attempt)
    if not final.verdict.accepted:
        verdict = _with_cause(final.verdict, analysis, planned)
        in_model = analysis.imported is not None
        verdict = with_suggestions(verdict, planned.foreign, recipe.options, in_model=in_model)
        final = replace(final, verdict=verdict)
    outcome = final.outcome(recipe, trials, compiled, seconds=time.monotonic() - started_s)
    page = report_page(_story(outcome, request, analysis, planned, holdout, calibration))
    return _conclude(outcome, final.staged, page, host, report)


@dataclass(frozen=True)
class _Attempt:
    """One candidate staged, verified and judged."""

    trial: Trial
    staged: Staged
    verified: Verified
    verdict: Verdict

    def outcome(
        self, recipe: Recipe, trials: Sequence[Trial], compiled: Compiled, *, seconds: float
    ) -> Outcome:
        return Outcome(
            recipe=recipe,
            folder=self.staged.folder,
            trials=tuple(trials),
            chosen=self.trial,
            verified=self.verified,
            verdict=self.verdict,
            int8_mac_share=self.staged.int8_mac_share,
            seconds=seconds,
            compiled=compiled,
        )


def _first_accepted(trials: Sequence[Trial], attempt: Callable[[Trial], _Attempt]) -> _Attempt:
    """The fastest that the gate accepts; the fastest of all when it accepts none."""
    for trial in trials:
        tried = attempt(trial)
        if tried.verdict.accepted:
            return tried
    return tried if len(trials) == 1 else attempt(trials[0])


def _story(
    outcome: Outcome,
    request: Request,
    analysis: ModelAnalysis,
    planned: Planned,
    holdout: HoldoutSet,
    calibration: Calibration,
) -> ReportData:
    """With what only the report asks for: the counts behind the ranges, and the time of every layer."""
    stats = HistogramStats(calibration.used.histograms) if calibration.used is not None else None
    model, candidate = analysis.model, outcome.chosen.candidate
    costs = layer_costs(request, model.proto, model.view, planned.plan, candidate, holdout)
    return ReportData(outcome, request, analysis, planned, holdout, stats, costs)


def _try_engines(
    request: Request, analysis: ModelAnalysis, planned: Planned, holdout: HoldoutSet, report: Reporter
) -> Sequence[Trial]:
    with Bench(request, analysis.model.proto, planned.plan, holdout) as bench:
        return bench.try_all(candidates_for(request, planned.plan), report)


def _with_cause(verdict: Verdict, analysis: ModelAnalysis, planned: Planned) -> Verdict:
    """What cost the accuracy: a kind of operator in INT8, and what the strategy had to leave float already."""
    if planned.error is None:
        return verdict
    cause = find_cause(analysis.model.view, planned.plan, planned.error)
    said = [str(cause)] if cause is not None else []
    said += left_float(planned.plan, analysis.keep_float)
    return replace(verdict, reasons=(*verdict.reasons, *said))


def _with_findings(verdict: Verdict, staged: Staged, host: PluginHost, recipe: Recipe) -> Verdict:
    """Lint and plugins look at the staged bundle too: every finding is told, one error rejects it."""
    findings = [*staged.lint, *host.check_bundle(staged.folder, recipe)]
    return replace(
        verdict,
        accepted=verdict.accepted and all(f.severity != "error" for f in findings),
        reasons=(*verdict.reasons, *(_told(f) for f in findings)),
        fixes=(*verdict.fixes, *(f.fix for f in findings if f.fix)),
    )


def _told(finding: Finding) -> str:
    seen = f" ({finding.seen})" if finding.seen else ""
    return f"{finding.severity} {finding.code}: {finding.what}{seen}"


def _conclude(outcome: Outcome, staged: Staged, page: str, host: PluginHost, report: Reporter) -> Outcome:
    """Write report and verdict into the manifest; rename when accepted or when no gate was asked for."""
    summary = outcome.summary()
    manifest = msgspec.structs.replace(
        staged.manifest,
        accepted=outcome.accepted,
        reasons=tuple(summary["reasons"]),
        metrics=msgspec.to_builtins({k: summary[k] for k in ("metric", "float", "chosen", "int8_mac_share")}),
    )
    write_staged(staged.folder, manifest, {REPORT: page.encode()})
    if not outcome.answer_is_yes:
        return outcome
    publish(staged.folder, outcome.recipe.output)
    done = replace(outcome, folder=outcome.recipe.output)
    for failure in host.build_finished(outcome.recipe.output, done.summary()):
        report.warning(failure)
    return done
