"""The host's own workbench over a real detector, for testing a strategy outside of a build.

from avq.contract.workbench import check_strategy
def test_contract():
    check_strategy(MyQuantizer(), options={"margin": "1.1"})
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from avq.builder.calibrate.calibration import Calibration
from avq.builder.context import BuildContext, open_context
from avq.builder.planning import make_plan
from avq.builder.request import refused_targets
from avq.contract.quantizer_suite import check_quantizer
from avq.errors import AvqError, PluginError
from avq.hookspecs import Quantizer, Workbench
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.scenes import builtin_detector_path
from avq.scenes.dataset import write_labelled_set
from avq.types import GraphView, PlanScore, QuantizationPlan, Recipe, Target

#: Road scenes that neither the built-in detector nor its calibration set has seen.
_SCENES = range(7_000_000, 7_000_024)
#: One target that takes any grid, and one that takes signed grids around zero only.
TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")

T = TypeVar("T")


@dataclass(frozen=True)
class RecordedPlan:
    """A strategy that kept its contract for one target: its plan, and how far that is from the float model."""

    target: Target
    plan: QuantizationPlan
    score: PlanScore


def check_strategy(
    quantizer: Quantizer,
    *,
    options: Mapping[str, str] | None = None,
    model: Path | None = None,
    data: Path | None = None,
    targets: Sequence[Target] = TARGETS,
    report: Reporter | None = None,
) -> tuple[RecordedPlan, ...]:
    """The contract suite of quantizers on a real workbench, once per target.

    Args:
        quantizer: the strategy under test; it need not be installed.
        options: as from ``--option k=v``.
        model: an ONNX detector; the built-in one when None.
        data: pictures for ``model``; drawn road scenes when None.
        targets: what the plans are for, but those it says it refuses. None of them needs its hardware:
            nothing is served.

    Raises:
        PluginError: at the first rule the strategy breaks, and for whatever else it raises.
        AvqError: the model or the pictures cannot be used.
    """

    def judge(target: Target) -> Callable[[GraphView, Workbench], RecordedPlan]:
        def ask(graph: GraphView, bench: Workbench) -> RecordedPlan:
            plan = _guarded(quantizer, lambda: check_quantizer(quantizer, graph, bench, options))
            return RecordedPlan(target, plan, _lowered(quantizer, plan, bench))

        return ask

    served = [target for target in targets if target not in refused_targets(quantizer)]
    with _context(model, data, report or Silent()) as context:
        return tuple(_plan_with(context, judge(target), quantizer.name, target) for target in served)


def on_workbench(
    ask: Callable[[GraphView, Workbench], T],
    *,
    strategy: str = "float",
    target: Target = "cpu",
    model: Path | None = None,
    data: Path | None = None,
    report: Reporter | None = None,
) -> T:
    """What ``ask(graph, bench)`` returns, called as a build would call a strategy's ``plan``.

    ``bench`` is the build's own, over a real network and real pictures, except that it gives the answer to one
    question once: measured times differ from run to run, and a strategy is not to blame for that. ``strategy`` is
    the name that hooks of installed plugins see in the recipe.
    """
    with _context(model, data, report or Silent()) as context:
        return _plan_with(context, ask, strategy, target)


def _plan_with(
    context: BuildContext, ask: Callable[[GraphView, Workbench], T], strategy: str, target: Target
) -> T:
    """Call ``ask`` in place of a strategy: planned as for the target, measured on the engines of this machine."""
    probe: _Probe[T] = _Probe(ask)
    recipe = replace(context.recipe, strategy=strategy, target=target)
    request = replace(context.request, recipe=recipe, quantizer=probe, options=_NoOptions())
    calibration = Calibration(request, context.analysis, context.pictures.calibration, context.reporter)
    make_plan(replace(context, request=request, calibration=calibration))
    return probe.answers[0]


@contextmanager
def _context(model: Path | None, data: Path | None, report: Reporter) -> Iterator[BuildContext]:
    with ExitStack() as stack:
        if data is None:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_labelled_set(data, seeds=_SCENES)
        recipe = Recipe(model=model or builtin_detector_path(), output=Path(), data=data, strategy="float")
        yield open_context(recipe, PluginHost(), report)


class _NoOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Probe(Generic[T]):
    """Stands where a strategy would, and passes on what it is given."""

    name = "contract"
    version = "1"
    options = _NoOptions

    def __init__(self, ask: Callable[[GraphView, Workbench], T]) -> None:
        self._ask = ask
        self.answers: list[T] = []

    def plan(self, graph: GraphView, bench: Workbench, options: Any) -> QuantizationPlan:
        self.answers.append(self._ask(graph, cast(Workbench, _Remembering(bench))))
        return QuantizationPlan(graph_digest=graph.digest, owner=self.name, owner_version=self.version)


class _Remembering:
    """A workbench that answers the same question the same way."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._bench, name)
        if not callable(value):
            return value

        def once(*given: Any, **named: Any) -> Any:
            key = f"{name} {_key(given)} {_key(sorted(named.items()))}"
            if key not in self._answers:
                self._answers[key] = value(*given, **named)
            return self._answers[key]

        return once


def _key(value: Any) -> str:
    if isinstance(value, QuantizationPlan):
        return value.digest
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_key, value))}]"
    return repr(value)


def _lowered(quantizer: Quantizer, plan: QuantizationPlan, bench: Workbench) -> PlanScore:
    try:
        return bench.error(plan)
    except AvqError as error:
        raise PluginError(
            f"the strategy {quantizer.name!r} breaks its contract: the plan can be written as a model",
            seen=f"{error.what} {error.seen}".strip(),
            fix=error.fix,
        ) from error


def _guarded(quantizer: Quantizer, body: Callable[[], T]) -> T:
    try:
        return body()
    except AvqError:
        raise
    except Exception as error:  # a strategy's bug; the error names its place
        raise PluginError(
            f"the strategy {quantizer.name!r} breaks its contract: it fails with errors of avq only",
            seen=f"{type(error).__name__}: {error}, {_where(error)}",
            fix="raise avq.errors.PlanError for what cannot be planned",
        ) from error


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
