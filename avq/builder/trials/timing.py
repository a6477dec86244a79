"""Time the chosen candidate against its float rival until the gate's answer on time is certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from avq.builder.answers import time_answer
from avq.builder.context import BuildContext
from avq.builder.trials.serving import Candidate, Trial, model_for, open_candidate
from avq.errors import AvqError
from avq.measure.latency import LatencySamples, Pair, latency_of, timed_until
from avq.types import Latency, QuantizationPlan

_Run = Callable[[], object]


def time_against_float(
    chosen: Trial, trials: Sequence[Trial], plan: QuantizationPlan, context: BuildContext
) -> list[Trial]:
    """Return ``trials`` with the chosen one and its rival timed anew, in rounds of their own.

    The ranking chose the fastest of many, so its times are too good; p50 and ratio of the verdict are these.
    A session that no longer opens leaves ``trials`` as they are.
    """
    rival = rival_of(chosen, trials)
    if rival is None or rival is chosen or not context.holdout.inputs:
        return list(trials)
    context.reporter.message(f"timing {chosen.label} against {rival.label}")
    try:
        pair = timed_until(
            lambda pair: time_answer(_latency(pair, rival)) != "cannot tell",
            lambda: _opened([chosen.candidate, rival.candidate], plan, context),
        )
    except AvqError as error:
        context.reporter.warning(f"the verdict keeps the times of the ranking: {error.what}")
        return list(trials)
    own, other = _latency(pair, rival), _itself(pair.rival, rival.candidate.label)
    return [
        replace(t, latency=own) if t is chosen else replace(t, latency=other) if t is rival else t
        for t in trials
    ]


def rival_of(chosen: Trial, trials: Sequence[Trial]) -> Trial | None:
    """Return the float trial that ``chosen`` was timed against."""
    label = chosen.latency.float_engine if chosen.latency is not None else None
    return next((trial for trial in trials if trial.candidate.label == label), None)


def _latency(pair: Pair, rival: Trial) -> Latency:
    return latency_of(pair.own, pair.rival, pair.ratio, rival.candidate.label)


def _itself(samples: LatencySamples, label: str) -> Latency:
    return latency_of(samples, samples, (1.0, 1.0, 1.0), label)


@contextmanager
def _opened(
    candidates: Sequence[Candidate], plan: QuantizationPlan, context: BuildContext
) -> Iterator[tuple[_Run, _Run]]:
    proto, tensor = context.analysis.model.proto, context.holdout.inputs[0].tensor
    with ExitStack() as stack:
        runs: list[_Run] = []
        for candidate in candidates:
            model = model_for(proto, plan, candidate.encoding)
            session = open_candidate(context.request, candidate, model)
            stack.callback(session.close)
            runs.append(lambda session=session: session.infer(tensor))  # type: ignore[misc]
        yield runs[0], runs[1]
