"""TensorRT 10.x and 11.x, as JetPack, DRIVE OS and NVIDIA's own packages bring it.

An engine fits the very release and card it was built with, so it is built where it runs: `avq compile`. What a
release offers is found in its classes, never derived from its version.

No machine that avq was developed on has a card, nor the library: this file is tested against the recorded names of
the 10.16 and 11.4 bindings, and its builder on the classes of TensorRT for RTX, which is a release of the 11.x kind.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from avq.engines import common
from avq.engines.cache import cache_folder, store
from avq.engines.cuda import first_card, open_cuda, why_no_card
from avq.engines.gpu_session import GpuSession, require_card
from avq.engines.tensorrt_build import BuildOptions, Report, build, last_words, make_log, no_collection
from avq.engines.tensorrt_layers import EngineLayer, layers_of, not_in_int8, precision_of, require_planned
from avq.errors import BundleError, MachineError, RequestError
from avq.types import U8, CompiledEngine, EnginePrecision, EngineStatus, LayerTime, SessionOptions

NAME = "tensorrt"
_HOW = (
    "bundles for it are built here, its engines on the vehicle (avq compile); it comes with JetPack and DRIVE OS, "
    'elsewhere pip install "avq[tensorrt]"'
)


class TensorRtEngine:
    """Builds on the machine that runs it."""

    name = NAME
    #: Bundles for it are made anywhere, and compiled on the vehicle.
    compiles_on_target = True

    def status(self) -> EngineStatus:
        if importlib.util.find_spec(NAME) is None:
            return EngineStatus(NAME, False, "", False, False, f"not installed; {_HOW}")
        try:
            trt = _load()
        except MachineError as error:
            return EngineStatus(
                NAME, False, "", False, False, f"installed, but it does not load: {error.seen}"
            )
        why = why_no_card()
        card = first_card()
        ability = (
            f"cannot build or run here: {why}" if why or card is None else f"builds for {card.architecture}"
        )
        methods = "Q/DQ and calibrators" if hasattr(trt, "IInt8EntropyCalibrator2") else "Q/DQ"
        return EngineStatus(
            NAME, True, str(trt.__version__), not why, not why, f"INT8 by {methods}; {ability}"
        )

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        """What the file's own types say; nothing is converted behind its back."""
        return ("f32",) if self.status().available else ()

    def encodings(self) -> tuple[str, ...]:
        """Signed grids around zero only."""
        return ("s8",)

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """None: an engine is built where it runs. RequestError for any name."""
        if names:
            raise RequestError(
                "TensorRT builds engines on the machine that runs them",
                seen=f"--gpu-arch {','.join(names)}",
                fix="build without --gpu-arch; on the vehicle: avq compile BUNDLE --target tensorrt",
            )
        return ()

    def architecture(self) -> str:
        """Compute capability of the first card, "sm87"; '' without one."""
        card = first_card()
        return card.architecture if card is not None else ""

    def compile(
        self,
        model: bytes,
        architecture: str,
        options: BuildOptions | None = None,
        report: Report = lambda line: None,
    ) -> CompiledEngine:
        """The engine of this machine's card, with the timing cache of earlier builds. Takes minutes.

        ``architecture`` must be this card's, or "current".
        """
        if options is not None and not isinstance(options, BuildOptions):
            raise RequestError("unknown build options for TensorRT", seen=type(options).__name__)
        require_card(NAME, why_no_card())
        here = self.architecture()
        if architecture not in ("current", here):
            self.chosen_architectures((architecture,))
        trt = _load()
        log, cache = make_log(trt), _timing_cache_path(trt, here)
        settings = replace(options or BuildOptions(), timing_cache=_read(cache))
        cuda = open_cuda() if settings.calibration is not None else None
        try:
            built = build(trt, log, model, settings, cuda=cuda, report=report)
        finally:
            if cuda is not None:
                cuda.close()
        if built.timing_cache:
            store(cache, built.timing_cache)
        return CompiledEngine(here, built.data, built.seconds, built.layers, tuple(log.warnings))

    def open(self, model: bytes | Path, options: SessionOptions) -> TensorRtSession:
        """Compile for this card and open; MachineError where there is none."""
        del options  # precisions are the file's, threads are the card's
        _load()
        require_card(NAME, why_no_card())
        return self.open_engine(self.compile(common.model_bytes(model), "current").data)

    def open_engine(self, engine: bytes, precision: str = "", *, graph: bool = True) -> TensorRtSession:
        """A session of an engine that was compiled before. ``engine`` must have been checked: it is code.

        Raises MachineError where there is no card, BundleError for an engine of another card or release.
        """
        trt = _load()
        require_card(NAME, why_no_card())
        return open_engine(trt, make_log(trt), engine, precision=precision, graph=graph)

    def layer_times(
        self, models: Sequence[bytes], options: SessionOptions, picture: U8, *, rounds: int = 40
    ) -> list[list[LayerTime]]:
        """Time of every layer of each model's engine, in execution order."""
        return [self._layer_times(self.open(model, options), picture, rounds) for model in models]

    def _layer_times(self, session: TensorRtSession, picture: U8, rounds: int) -> list[LayerTime]:
        try:
            session.infer(picture)
            nodes = {layer.name: layer.nodes for layer in session.layers}
            times = session.layer_milliseconds(rounds)
            return [LayerTime(name, nodes.get(name, ()), int(1e6 * ms)) for name, ms in times]
        finally:
            session.close()


class TensorRtSession(GpuSession):
    """An engine of full TensorRT; ``layers`` is what the inspector says of it."""

    layers: tuple[EngineLayer, ...] = ()

    def require_planned(self, wanted: Mapping[str, str]) -> tuple[str, ...]:
        """Names of layers that are FP16 where the plan says INT8; ModelError for layers left in FP32."""
        require_planned(self.layers, wanted)
        return not_in_int8(self.layers, wanted)


@no_collection()
def open_engine(trt: Any, log: Any, data: bytes, *, precision: str, graph: bool) -> TensorRtSession:
    """Deserialize, bind, warm up. Code inside engines stays forbidden."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BundleError(
            "TensorRT cannot load the engine",
            seen=last_words(log) or f"release {trt.__version__}",
            fix="compile it on this machine: avq compile BUNDLE --target tensorrt",
        )
    layers = layers_of(trt, engine)
    runs_in = precision_of(layers, precision or "as built")
    context = engine.create_execution_context()
    session = TensorRtSession(
        NAME, trt, runtime, engine, context, open_cuda(), precision=runs_in, graph=graph
    )
    session.layers = layers
    return session


def _load() -> Any:
    try:
        import tensorrt
    except Exception as error:  # a half-installed library raises anything
        raise common.missing_runtime(NAME, error) from error
    return tensorrt


def _timing_cache_path(trt: Any, architecture: str) -> Path:
    """$XDG_CACHE_HOME/avq/tensorrt, by release and card: times of another one mean nothing."""
    key = hashlib.sha256(f"{trt.__version__} {architecture} {first_card()}".encode()).hexdigest()[:32]
    return cache_folder("tensorrt") / f"{key}.times"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
