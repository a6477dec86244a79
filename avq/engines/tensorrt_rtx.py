"""TensorRT for RTX: engines for RTX cards, built on any machine, even one without a GPU.

Strongly typed: precisions are those of the file, so the file says FP16 and Q/DQ. The timing cache is left alone: it
has no effect here and asks for a GPU. An engine fits this version of the library and the architecture it was built
for, nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import time
from pathlib import Path
from typing import Any

from avq.engines import common
from avq.engines.cache import cache_folder, store
from avq.engines.common import spelled
from avq.engines.cuda import first_card, open_cuda, why_no_card
from avq.engines.gpu_session import GpuSession
from avq.engines.tensorrt_build import Report, last_words, make_log, no_collection, parse
from avq.errors import BundleError, MachineError, ModelError, RequestError, nearest
from avq.types import CompiledEngine, EnginePrecision, EngineStatus, SessionOptions

# Running an RTX engine: checked before it is read, kernels compiled once and kept, one CUDA graph per
# frame.


@no_collection()
def open_engine(trt: Any, log: Any, data: bytes, *, precision: str) -> GpuSession:
    """A session of a serialized engine, warmed up.

    Raises MachineError where there is no card, BundleError for an engine that is not for this machine.
    """
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    _require_valid(trt, runtime, data)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            "TensorRT for RTX cannot load the engine",
            seen=last_words(log) or "no reason given",
            fix="compile it on this machine",
        )
    cache = _cache_path(trt, data)
    config, kept = _runtime_config(trt, engine, cache)
    context = engine.create_execution_context(config)
    # The library captures the graph of a frame itself: a second one around it would hold nothing.
    session = GpuSession(NAME, trt, runtime, engine, context, open_cuda(), precision=precision, graph=False)
    if kept is not None:
        store(cache, bytes(memoryview(kept.serialize())))
    return session


def _require_valid(trt: Any, runtime: Any, data: bytes) -> None:
    """The library's own check of version, architecture and driver, where it has one; no proof against tampering."""
    ask = getattr(runtime, "get_engine_validity", None)
    if ask is None:
        return
    validity, diagnostics = ask(data)
    if validity != trt.EngineValidity.INVALID:
        return
    members = trt.EngineInvalidityDiagnostics.__members__
    causes = [name for name, member in members.items() if int(diagnostics) & int(member)]
    raise BundleError(
        "the engine is not for this machine",
        seen=", ".join(causes).lower().replace("_", " ") or "no cause given",
        fix="build it again with --gpu-arch of this card and this version of the library",
    )


def _runtime_config(trt: Any, engine: Any, cache: Path) -> tuple[Any, Any]:
    """Whole-graph capture and kept kernels, each where the library has it: (config, cache object or None)."""
    config = engine.create_runtime_config()
    graphs = getattr(trt, "CudaGraphStrategy", None)
    if graphs is not None and hasattr(config, "cuda_graph_strategy"):
        config.cuda_graph_strategy = graphs.WHOLE_GRAPH_CAPTURE
    kernels = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kernels is not None and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER  # no slow stand-ins, ever
    if not hasattr(config, "create_runtime_cache"):
        return config, None
    kept = config.create_runtime_cache()
    if cache.is_file():
        kept.deserialize(cache.read_bytes())  # the library refuses what is not of this card and version
    config.set_runtime_cache(kept)
    return config, kept


def _cache_path(trt: Any, data: bytes) -> Path:
    """$XDG_CACHE_HOME/avq/rtx, by engine and library version."""
    key = hashlib.sha256(data + str(trt.__version__).encode()).hexdigest()
    return cache_folder("rtx") / f"{key}.kernels"


NAME = "tensorrt-rtx"
_MODULE = "tensorrt_rtx"
_PACKAGE = "tensorrt-rtx-cu12"
#: Architectures built by default: GeForce and RTX of the last three generations.
DEFAULT_ARCHITECTURES = ("sm86", "sm89", "sm120")
_ELSEWHERE = {
    "sm72": "Xavier takes TensorRT 8 of JetPack 5",
    "sm87": "Orin takes the TensorRT of JetPack or DRIVE OS: --target tensorrt",
    "sm90": "Hopper takes full TensorRT: --target tensorrt",
    "sm100": "Blackwell data-centre cards take full TensorRT: --target tensorrt",
    "sm101": "Thor takes the TensorRT of JetPack 7 or DRIVE OS 7: --target tensorrt",
    "sm110": "Thor takes the TensorRT of JetPack 7 or DRIVE OS 7: --target tensorrt",
}


class TensorRtRtxEngine:
    """Parses, builds for named architectures, and, where there is a card, runs."""

    name = NAME
    #: Bundles hold its engines: ``avq build`` compiles them.
    compiles_on_target = False

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        """What the file's own types say; nothing is converted behind its back."""
        return ("f32",) if self.status().available else ()

    def status(self) -> EngineStatus:
        if importlib.util.find_spec(_MODULE) is None:
            return EngineStatus(NAME, False, "", False, False, f"not installed; pip install {_PACKAGE}")
        try:
            listed = ", ".join(self.architectures())
        except Exception as error:  # a library that does not load raises anything
            why = " ".join(f"installed, but it does not load: {error}".split())
            return EngineStatus(NAME, False, "", False, False, why)
        why = self.why_not_running()
        ability = f"builds for {listed}" + (f"; cannot run here: {why}" if why else "")
        return EngineStatus(NAME, True, _version(), True, not why, ability)

    def encodings(self) -> tuple[str, ...]:
        """Signed grids around zero only."""
        return ("s8",)

    def architectures(self) -> tuple[str, ...]:
        """Compute capabilities that the installed library builds for, such as "sm89"."""
        members = _load().ComputeCapability.__members__
        return tuple(name.lower() for name in members if name.startswith("SM"))

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Give ``names`` in the library's spelling, the usual cards when empty; RequestError for others."""
        known = self.architectures()
        if not names:
            return tuple(each for each in DEFAULT_ARCHITECTURES if each in known)
        chosen = tuple(dict.fromkeys(spelled(name) for name in names))
        for name in chosen:
            if name not in known:
                raise RequestError(
                    f"TensorRT for RTX builds no engine for '{name}'",
                    seen=_ELSEWHERE.get(name, f"it builds for {', '.join(known)}"),
                    fix=nearest(name, known),
                )
        return chosen

    def architecture(self) -> str:
        """Compute capability of the first card, "sm89"; '' without one."""
        card = first_card()
        return card.architecture if card is not None else ""

    @no_collection()
    def compile(
        self, model: bytes, architecture: str, options: Any = None, report: Report = lambda line: None
    ) -> CompiledEngine:
        """The engine of one architecture. Needs no GPU, takes seconds to minutes.

        Raises:
            ModelError: the parser refuses a node (named), or the builder finds no implementation.
            RequestError: build options, which this library does not have.
        """
        if options is not None:
            raise RequestError(
                "TensorRT for RTX takes the types of the file only",
                seen="a calibrator or a DLA core",
                fix="drop --calibrate and --dla-core, or --target tensorrt",
            )
        trt = _load()
        log = make_log(trt)
        builder = trt.Builder(log)
        network = builder.create_network(_strongly_typed(trt))
        parse(trt, network, model, log, target=NAME)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, architecture.upper()), 0)
        report("building")
        started_s = time.monotonic()
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise ModelError(
                f"TensorRT for RTX cannot build the model for {architecture}",
                seen=last_words(log) or "no reason given",
                fix="avq lint MODEL --target tensorrt-rtx; leave the named layer float: avq_keep_float",
            )
        seconds = time.monotonic() - started_s
        return CompiledEngine(
            architecture, bytes(memoryview(built)), seconds, network.num_layers, tuple(log.warnings)
        )

    def open(self, model: bytes | Path, options: SessionOptions) -> GpuSession:
        """Compile for this machine's card and open; MachineError where there is none."""
        del options  # precisions are the file's, threads are the card's
        source = common.model_bytes(model)
        self._require_card()
        quantized = b"QuantizeLinear" in source
        return self.open_engine(self.compile(source, "current").data, "int8+f16" if quantized else "f16")

    def open_engine(self, engine: bytes, precision: str) -> GpuSession:
        """A session of an engine that was compiled before, such as a bundle's part engine.sm89.

        Raises MachineError where there is no card, BundleError for an engine of another machine.
        """
        self._require_card()
        trt = _load()
        return open_engine(trt, make_log(trt), engine, precision=precision)

    def why_not_running(self) -> str:
        """'' when this machine has a card that the installed library knows, and a library for its memory."""
        why, card = why_no_card(), first_card()
        if why or card is None or card.architecture in self.architectures():
            return why
        other = _ELSEWHERE.get(card.architecture, "unknown to it")
        return f"it builds nothing for {card.name} ({card.architecture}): {other}"

    def _require_card(self) -> None:
        _load()
        why = self.why_not_running()
        if why:
            raise MachineError(
                "TensorRT for RTX can build here but not run",
                seen=why,
                fix="run it on a machine with an RTX card; avq build compiles for it with --gpu-arch",
            )


def _strongly_typed(trt: Any) -> int:
    """The flag where the library still has it; newer ones know nothing else."""
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    member = getattr(flags, "STRONGLY_TYPED", None)
    return 0 if member is None else 1 << int(member)


def _load() -> Any:
    try:
        import tensorrt_rtx
    except Exception as error:  # a half-installed library raises anything
        raise MachineError(
            "the runtime tensorrt-rtx is not installed here", seen=str(error), fix='pip install "avq[rtx]"'
        ) from error
    return tensorrt_rtx


def _version() -> str:
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(_load(), "__version__", ""))
