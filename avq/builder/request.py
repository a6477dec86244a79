"""Check a request: wrong names, options and paths are refused before the first picture is read."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from avq.builder.emulated_target import EmulatedEngine, target_compiler
from avq.engines import engine_by_name
from avq.errors import AvqError, MachineError, PluginError, RequestError, nearest
from avq.hookspecs import (
    CompilingEngine,
    Decoder,
    Engine,
    ImportingQuantizer,
    LimitedQuantizer,
    Quantizer,
    Workbench,
)
from avq.parallel import WorkerPool
from avq.plugins import PluginHost, validate_options
from avq.types import TARGETS, GraphView, QuantizationPlan, Recipe

FLOAT_STRATEGY = "float"
CPU_ENGINES = ("onnxruntime", "openvino")
REFERENCE_ENGINE = "onnxruntime"


@dataclass(frozen=True)
class Request:
    """A recipe whose names have become objects.

    Attributes:
        quantizer: None for the float strategy.
        options: the strategy's validated options; None for float.
        engines: engines the bundle may be served by, by name; installed ones only.
        float_engines: every installed CPU engine and the target's: what the gate compares times with.
        reference: runs lowered models unoptimised; defines what they mean.
        decoder_packages: family -> package and version of the plugin that brings it.
        families: head families of plugins, tried after the built-in ones.
        compiler: builds engines of the target where ``avq compile`` compiles and times them; an EmulatedEngine
            then replaces it among the engines, and no time is measured.
    """

    recipe: Recipe
    quantizer: Quantizer | None
    options: BaseModel | None
    engines: Mapping[str, Engine]
    float_engines: Mapping[str, Engine]
    reference: Engine
    families: Sequence[Decoder] = ()
    compiler: CompilingEngine | None = None
    pool: WorkerPool = field(default_factory=WorkerPool)
    decoder_packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def imports(self) -> bool:
        """Whether the strategy imports quantization from a file; it needs no pictures for that."""
        return isinstance(self.quantizer, ImportingQuantizer) and self.quantizer.imports

    @property
    def calibrates(self) -> bool:
        """Whether the strategy makes its plan from the pictures; imports do so where ranges are missing."""
        return self.quantizer is not None and not self.imports and self.recipe.calibration is None

    @property
    def probe_threads(self) -> int:
        """Threads for work whose time is not measured."""
        return max(self.recipe.threads, os.cpu_count() or 1)


class PluginErrorBoundary:
    """Wraps a strategy: its exceptions become PluginErrors with file and line."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.name, self.version, self.options = quantizer.name, quantizer.version, quantizer.options
        self.imports = isinstance(quantizer, ImportingQuantizer) and quantizer.imports
        self._quantizer = quantizer

    def plan(self, graph: GraphView, bench: Workbench, options: Any) -> QuantizationPlan:
        try:
            return self._quantizer.plan(graph, bench, options)
        except AvqError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise PluginError(
                f"strategy '{self.name}' failed while it planned",
                seen=f"{type(error).__name__}: {error}, {place.filename}:{place.lineno}",
                fix=f"report it to its author; python -m avq.contract --quantizer {self.name} checks it",
            ) from error


def check(recipe: Recipe, host: PluginHost) -> Request:
    """Resolve strategy, options, target and files.

    Raises RequestError for wrong names, options or paths, MachineError when the target cannot be served here.
    """
    if not recipe.model.exists():
        raise RequestError(f"no model at {recipe.model}", seen="no such file", fix="check the path")
    quantizer = None if recipe.strategy == FLOAT_STRATEGY else PluginErrorBoundary(_quantizer(recipe, host))
    if recipe.data is None and (quantizer is None or not quantizer.imports):
        raise RequestError(
            "calibration pictures are missing",
            seen="no --data",
            fix="add --data FOLDER_OF_PICTURES",
        )
    options = _options(recipe, quantizer)
    _require_dla_target(recipe)
    names = (*CPU_ENGINES, recipe.target)
    installed = {e.name: e for e in host.engines() if e.name in names and e.status().can_run}
    reference = reference_engine(host)
    compiler = target_compiler(recipe.target, host.engines())
    if compiler is not None:
        _check_cross_compile(recipe, compiler)
        installed[recipe.target] = EmulatedEngine(compiler, reference)
    known = tuple(dict.fromkeys((*TARGETS, *(engine.name for engine in host.engines()))))
    engines = _serving(recipe, installed, known)
    return Request(
        recipe,
        quantizer,
        options,
        engines,
        installed,
        reference,
        host.decoders(),
        compiler,
        decoder_packages=host.decoder_packages(),
    )


def _require_dla_target(recipe: Recipe) -> None:
    if recipe.dla and (recipe.target != "tensorrt" or recipe.data is None):
        raise RequestError(
            "--dla writes ranges of every tensor for TensorRT",
            seen=f"--target {recipe.target}" + ("" if recipe.data else ", no --data"),
            fix="--target tensorrt --data DIR, or drop --dla",
        )


def _check_cross_compile(recipe: Recipe, compiler: CompilingEngine) -> None:
    """Raise RequestError for unknown architectures, and for limits that only the GPU could check."""
    compiler.chosen_architectures(recipe.gpu_arch)
    if recipe.budget_ms is not None:
        raise RequestError(
            "--budget-ms needs the GPU of the target",
            seen=f"--budget-ms {recipe.budget_ms:g} for {recipe.target}",
            fix=f"build without it; on the vehicle: avq compile BUNDLE --budget-ms {recipe.budget_ms:g}",
        )


def reference_engine(host: PluginHost) -> Engine:
    """Return the reference engine, whose unoptimised run defines a model's numbers; MachineError without it."""
    engine = engine_by_name(REFERENCE_ENGINE, host.engines())
    status = engine.status()
    if not status.available:
        raise MachineError(
            "onnxruntime is missing: its unoptimised run is the reference of every model",
            seen=status.why,
            fix='pip install "avq[build]"',
        )
    return engine


def _quantizer(recipe: Recipe, host: PluginHost) -> Quantizer:
    known = {q.name: q for q in host.quantizers()}
    if recipe.strategy not in known:
        raise RequestError(
            f"no strategy named '{recipe.strategy}'",
            seen=f"registered: {', '.join(sorted(known))}",
            fix=nearest(recipe.strategy, [*known, FLOAT_STRATEGY]),
        )
    quantizer = known[recipe.strategy]
    refused = refused_targets(quantizer)
    if recipe.target in refused:
        raise RequestError(
            f"strategy '{recipe.strategy}' cannot serve target {recipe.target}",
            seen=refused[recipe.target],
            fix=f"another --strategy, or a --target other than {', '.join(refused)}",
        )
    return quantizer


def refused_targets(quantizer: Quantizer) -> Mapping[str, str]:
    """Targets the strategy can never serve, with the reason: see ``LimitedQuantizer``."""
    return quantizer.refused_targets if isinstance(quantizer, LimitedQuantizer) else {}


def options_of(recipe: Recipe, host: PluginHost) -> BaseModel | None:
    """The strategy's validated options; None for float. Raises RequestError as a build would."""
    return _options(recipe, None if recipe.strategy == FLOAT_STRATEGY else _quantizer(recipe, host))


def _options(recipe: Recipe, quantizer: Quantizer | None) -> BaseModel | None:
    if quantizer is not None:
        return validate_options(quantizer, recipe.options, recipe.option_folders)
    if recipe.options:
        raise RequestError(
            "the float strategy has no options",
            seen=", ".join(sorted(recipe.options)),
            fix="drop --option, or choose another --strategy",
        )
    return None


def _serving(recipe: Recipe, installed: Mapping[str, Engine], known: Sequence[str]) -> dict[str, Engine]:
    if recipe.target not in known:
        raise RequestError(
            f"no target named '{recipe.target}'", seen=recipe.target, fix=nearest(recipe.target, known)
        )
    wanted = CPU_ENGINES if recipe.target == "cpu" else (recipe.target,)
    serving = {name: engine for name, engine in installed.items() if name in wanted}
    if not serving:
        raise MachineError(
            f"target {recipe.target} cannot be built on this machine",
            seen=f"engines here: {', '.join(installed) or 'none'}",
            fix=f'pip install "avq[{wanted[0]}]"; avq doctor lists missing parts'
            if recipe.target in ("cpu", *CPU_ENGINES)
            else "an engine for it comes as a plugin; avq doctor lists missing parts",
        )
    return serving
