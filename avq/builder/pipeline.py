"""One build, forward only; ``run_build`` is its diagram.

1. Open: resolve the recipe, read the pictures, analyse the model, run the float model (``open_context``).
2. Plan: the strategy calibrates and places quantizers; the target adds FP16 and DLA ranges. The plan is final.
3. Try: lower the plan for every engine, compare each with the reference, time the right ones; or compile
   engines for a target that is not here.
4. Stage and verify: write the bundle of the fastest candidate, run it as the daemon does.
5. Judge: all evidence goes into one verdict. A refused candidate gives way to the next.
6. Advise: find causes and fixes for a refused build.
7. Publish: write report and verdict, rename the folder: to its destination, or to OUTPUT.rejected when refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from avq.builder.context import BuildContext, open_context, require_comparison
from avq.builder.cross_compile.dla import implicit_parts
from avq.builder.cross_compile.target import Compiled
from avq.builder.diagnose import advise
from avq.builder.gate import Evidence, Limits, Measured, accuracy_of, judge
from avq.builder.import_parity import is_import_changed, prove_import
from avq.builder.lift import Parity
from avq.builder.outcome import Attempt, Outcome
from avq.builder.planning import Planned, finish_plan, make_plan
from avq.builder.report import report_page
from avq.builder.stage import drift_parts, require_same_source, stage
from avq.builder.trials.bench import fastest_first, try_engines
from avq.builder.trials.serving import Trial
from avq.builder.trials.timing import time_against_float
from avq.builder.verify import verify
from avq.bundle import REPORT, discard, publish, write_staged
from avq.parallel import WorkerPool
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import QuantizationPlan, Recipe


def run_build(recipe: Recipe, host: PluginHost, report: Reporter, pool: WorkerPool | None = None) -> Outcome:
    """Build one bundle.

    Args:
        recipe: model, data, strategy, target and limits.
        host: the installed plugins.
        report: progress, messages and warnings.
        pool: spreads calibration and the scoring of plans; None runs them here.

    Returns:
        The result. A refused gate is an Outcome, not an error: bundle and report stay in ``OUTPUT.rejected``.

    Raises:
        AvqError: one of its leaves, for a request, model or data that cannot be built from.
    """
    started_s = time.monotonic()
    require_same_source(recipe)
    context = open_context(recipe, host, report, pool)
    require_comparison(context)
    planned = finish_plan(make_plan(context), context)
    candidates = _Candidates(context, planned, prove_import(context), _try(planned.plan, context))
    final = candidates.first_accepted()
    final = replace(final, verdict=advise(final.verdict, planned, context))
    seconds = time.monotonic() - started_s
    outcome = Outcome(recipe, final, tuple(candidates.tried.trials), candidates.tried.compiled, seconds)
    return _publish(outcome, report_page(outcome, planned, context), context)


@dataclass(frozen=True)
class _Tried:
    """Candidates with their results.

    Attributes:
        trials: all of them.
        ranked: those that may serve, fastest first.
        compiled: engines built ahead for a target that cannot run here.
    """

    trials: Sequence[Trial]
    ranked: Sequence[Trial]
    compiled: Compiled


def _try(plan: QuantizationPlan, context: BuildContext) -> _Tried:
    """Try the plan on every engine; or compile it for a target that is not here, and emulate that."""
    if context.target is not None:
        compiled = context.target.compile(plan, context.reporter)
        trials = [context.target.trial(plan)]
        return _Tried(trials, trials, compiled)
    trials = try_engines(plan, context)
    return _Tried(trials, fastest_first(trials, plan, context.request), Compiled())


class _Candidates:
    """Stages, verifies and judges candidates of one plan, the fastest first; then times the accepted one."""

    def __init__(self, context: BuildContext, planned: Planned, parity: Parity | None, tried: _Tried) -> None:
        self.tried = tried
        self._context, self._planned, self._parity = context, planned, parity
        strategies = tuple(quantizer.name for quantizer in context.host.quantizers())
        recipe = context.recipe
        self._limits = Limits(recipe.max_drop, recipe.budget_ms, strategies, judge_time=recipe.judge_time)
        self._extra: Mapping[str, bytes] = {
            **tried.compiled.parts,
            **implicit_parts(planned.plan, context),
            **drift_parts(planned.plan, context),
        }

    def first_accepted(self) -> Attempt:
        """Return the fastest that is accurate, judged on its time too; else the fastest that is no sure no."""
        kept: Attempt | None = None
        for trial in self.tried.ranked:
            attempt, evidence = self._attempt(trial)
            if judge(evidence, replace(self._limits, judge_time=False)).passed:
                if kept is not None:
                    discard(kept.staged.folder)
                return self._timed(attempt, evidence)
            if kept is None:
                kept = attempt
            elif attempt.verdict.accuracy == "cannot tell" != kept.verdict.accuracy:
                discard(kept.staged.folder)
                kept = attempt
            else:
                discard(attempt.staged.folder)
        assert kept is not None
        return kept

    def _timed(self, attempt: Attempt, evidence: Evidence) -> Attempt:
        """Return ``attempt`` judged on times of its own rounds, where time is judged."""
        context, chosen = self._context, attempt.trial
        if not (self._limits.judge_time and context.recipe.gate) or evidence.measured.is_float:
            return attempt
        trials = time_against_float(chosen, self.tried.trials, self._planned.plan, context)
        timed = trials[list(self.tried.trials).index(chosen)]
        self.tried = replace(self.tried, trials=trials)
        measured = replace(evidence.measured, latency=timed.latency)
        verdict = judge(replace(evidence, measured=measured), self._limits)
        verified = replace(attempt.verified, measured=measured)
        return replace(attempt, trial=timed, verified=verified, verdict=verdict)

    def _attempt(self, trial: Trial) -> tuple[Attempt, Evidence]:
        context = self._context
        staged = stage(context, self._planned, trial, self._extra, self.tried.compiled.lint)
        evidence = Evidence(
            Measured(None, None, None, None, None),
            self._parity,
            import_changed=is_import_changed(context, self._planned.plan),
            has_pictures=bool(context.holdout.items),
            findings=(*staged.lint, *context.host.check_bundle(staged.folder, context.recipe)),
            conclusions=self._planned.conclusions,
            pending_target=context.target is not None,
        )

        def decided(measured: Measured) -> bool:
            answer = accuracy_of(replace(evidence, measured=measured), self._limits).answer
            return answer != "cannot tell" or not context.recipe.gate

        verified = verify(staged, trial, context, plans=self._planned.scored, decided=decided)
        evidence = replace(evidence, measured=verified.measured)
        return Attempt(trial, staged, verified, judge(evidence, self._limits)), evidence


def _publish(outcome: Outcome, page: str, context: BuildContext) -> Outcome:
    """Write report and verdict into the staged bundle, and rename it: a refused one to ``OUTPUT.rejected``."""
    summary, staged = outcome.summary(), outcome.final.staged
    metrics = {
        "metric": summary["metric"],
        "float": summary["float"],
        "chosen": summary["chosen"],
        "int8_mac_share": summary["int8_mac_share"],
    }
    manifest = msgspec.structs.replace(
        staged.manifest,
        accepted=outcome.accepted,
        accuracy_verdict=outcome.verdict.accuracy,
        time_verdict=outcome.verdict.time,
        reasons=tuple(summary["reasons"]),
        metrics=msgspec.to_builtins(metrics),
    )
    write_staged(staged.folder, manifest, {REPORT: page.encode()})
    published = replace(outcome, published=True)
    publish(staged.folder, published.folder)
    if not outcome.passed:
        return published
    for failure in context.host.build_finished(published.folder, published.summary()):
        context.reporter.warning(failure)
    return published
