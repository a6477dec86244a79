"""TensorRT's Python classes with exactly the names that a release has: any other name is an AttributeError.

Computes nothing of its own: an "engine" doubles the first bytes of its picture, on memory of the host. It records
what it is asked for.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from avq.errors import MachineError

FOLDER = Path(__file__).parent
ENGINE = b"an engine"
INPUT_SHAPE, OUTPUT_SHAPE = (1, 3, 2, 2), (1, 4)


def names_of(release: str) -> frozenset[str]:
    """``Class.member`` of one release, as `write_tensorrt_names` found them in its bindings."""
    return frozenset((FOLDER / f"tensorrt_names_{release}.txt").read_text(encoding="utf-8").split())


class HostCuda:
    """CUDA's layer on host memory: a device address is the address of an array."""

    stream = 5

    def __init__(self, *, graphs: bool = True) -> None:
        self._graphs = graphs
        self._blocks: list[Any] = []
        self._recorded: list[Callable[[], object]] | None = None
        self.launches = 0
        self.closed = False

    def submit(self, work: Callable[[], object]) -> None:
        """Run now, or record when a graph is being captured."""
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def device_bytes(self, size: int) -> int:
        self._blocks.append((ctypes.c_byte * size)())
        return ctypes.addressof(self._blocks[-1])

    def pinned(self, shape: Sequence[int], dtype: str) -> Any:
        return np.empty(tuple(shape), dtype)

    def to_device(self, address: int, array: Any) -> None:
        self.submit(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def to_host(self, array: Any, address: int) -> None:
        self.submit(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def mark(self) -> Any:
        return len(self._blocks)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return 0.5

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        if not self._graphs:
            raise MachineError("a CUDA call failed", seen="cuStreamEndCapture: error 901")
        recorded: list[Any] = []
        self._recorded = recorded
        queue()
        self._recorded = None

        def launch() -> None:
            self.launches += 1
            for work in recorded:
                work()

        return launch

    def synchronize(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Thing:
    """An object of one of TensorRT's classes: reading or setting a name the class lacks raises."""

    def __init__(self, double: Double, kind: str, **behaviour: Any) -> None:
        self.__dict__.update(_double=double, _kind=kind, _values=behaviour)

    def __getattr__(self, name: str) -> Any:
        self._double.require(self._kind, name)
        if name not in self._values:
            raise AssertionError(f"the double has no behaviour for {self._kind}.{name}")
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._double.require(self._kind, name)
        self._double.said.append((f"{self._kind}.{name}", value))
        self._values[name] = value


class Members:
    """An enumeration: members are their own names, and numbers when asked."""

    def __init__(self, double: Double, kind: str) -> None:
        self._double, self._kind = double, kind

    def __getattr__(self, name: str) -> Any:
        self._double.require(self._kind, name)
        return Member(f"{self._kind}.{name}")


class Member(str):
    def __int__(self) -> int:
        return 1


class Double:
    """The module ``tensorrt`` of one release."""

    def __init__(self, release: str, cuda: HostCuda | None = None) -> None:
        self.names, self.cuda = names_of(release), cuda or HostCuda()
        self.__version__ = f"{release}.0"
        self.release = release
        self.said: list[tuple[str, Any]] = []
        self.refuse_node = ""
        self.refuse_build = ""
        self.cache_matches = True
        self.dla_cores = 0
        self.layer_names: tuple[str, ...] = ("conv", "head")
        self.engine_layers: list[Any] = []

    def require(self, kind: str, name: str) -> None:
        if f"{kind}.{name}" not in self.names:
            raise AttributeError(f"{kind} of TensorRT {self.release} has no '{name}'")

    def set(self, name: str) -> Any:
        """The last value that attribute was given; None when it never was."""
        return next((value for key, value in reversed(self.said) if key == name), None)

    def flags(self) -> AbstractSet[str]:
        return {value for key, value in self.said if key == "set_flag"}

    def nptype(self, dtype: str) -> Any:
        return {"UINT8": np.uint8, "FLOAT": np.float32}[dtype]

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(f"TensorRT {self.release} has no '{name}'")
        if name in _BASES or name.startswith("IInt8"):
            return _base(self, name)
        made = {"Builder": self._builder, "OnnxParser": self._parser, "Runtime": self._runtime}
        return made.get(name) or Members(self, name)

    def _builder(self, log: Any) -> Thing:
        def create_network(flags: int) -> Thing:
            self.said.append(("create_network", flags))
            layers = [Thing(self, "ILayer", name=name) for name in self.layer_names]
            return Thing(self, "INetworkDefinition", num_layers=len(layers), get_layer=layers.__getitem__)

        return Thing(
            self,
            "Builder",
            create_network=create_network,
            create_builder_config=self._config,
            num_DLA_cores=self.dla_cores,
            build_serialized_network=lambda network, config: self._build(config, log),
        )

    def _config(self) -> Thing:
        def set_timing_cache(cache: Thing, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.said.append(("set_timing_cache", cache.serialize()))
            return self.cache_matches or cache.serialize() == b""

        def cache(content: bytes) -> Thing:
            return Thing(self, "ITimingCache", serialize=lambda: content)

        return Thing(
            self,
            "IBuilderConfig",
            set_flag=lambda flag: self.said.append(("set_flag", flag)),
            create_timing_cache=cache,
            set_timing_cache=set_timing_cache,
            get_timing_cache=lambda: cache(b"times"),
            progress_monitor=None,
        )

    def _build(self, config: Thing, log: Any) -> bytes | None:
        config.progress_monitor.phase_start("Building", None, 3)
        assert config.progress_monitor.step_complete("Building", 1)
        config.progress_monitor.phase_finish("Building")
        if self.refuse_build:
            log.log(self.ILogger.ERROR, self.refuse_build)
            return None
        calibrator = config._values.get("int8_calibrator")
        if calibrator is not None:
            self._calibrate(calibrator)
        return ENGINE

    def _calibrate(self, calibrator: Any) -> None:
        cache = calibrator.read_calibration_cache()
        self.said.append(("read_calibration_cache", cache))
        assert calibrator.get_batch_size() == 1
        while cache is None and (addresses := calibrator.get_batch(["images"])) is not None:
            size = int(np.prod(INPUT_SHAPE))
            self.said.append(("batch", ctypes.string_at(addresses[0], size)))
        if cache is None:
            calibrator.write_calibration_cache(b"TRT-101600-EntropyCalibration2\nimages: 3c010a14\n")

    def _parser(self, network: Thing, log: Any) -> Thing:
        error = Thing(
            self,
            "ParserError",
            node_name=lambda: self.refuse_node,
            node_operator=lambda: "Conv",
            desc=lambda: "has no importer",
        )

        def parse(model: bytes) -> bool:
            self.said.append(("parse", model))
            return not self.refuse_node

        return Thing(self, "OnnxParser", parse=parse, num_errors=1, get_error=lambda index: error)

    def _runtime(self, log: Any) -> Thing:
        def deserialize(data: bytes) -> Thing | None:
            if data != ENGINE:
                log.log(self.ILogger.ERROR, "magic tag does not match")
            return self._engine() if data == ENGINE else None

        return Thing(self, "Runtime", deserialize_cuda_engine=deserialize)

    def _engine(self) -> Thing:
        inspector = Thing(
            self,
            "EngineInspector",
            get_engine_information=lambda kind: json.dumps({"Layers": self.engine_layers}),
        )
        names = ["images", "scores"]
        return Thing(
            self,
            "ICudaEngine",
            num_io_tensors=2,
            get_tensor_name=names.__getitem__,
            get_tensor_dtype=lambda name: "UINT8" if name == "images" else "FLOAT",
            get_tensor_shape=lambda name: INPUT_SHAPE if name == "images" else OUTPUT_SHAPE,
            get_tensor_mode=lambda name: Member(
                "TensorIOMode.INPUT" if name == "images" else "TensorIOMode.OUTPUT"
            ),
            create_engine_inspector=lambda: inspector,
            create_execution_context=self._context,
        )

    def _context(self) -> Thing:
        bound: dict[str, int] = {}

        def compute() -> None:
            size = int(np.prod(INPUT_SHAPE))
            picture = np.frombuffer(ctypes.string_at(bound["images"], size), np.uint8)
            scores = (2 * picture[:4].astype(np.float32)).tobytes()
            ctypes.memmove(bound["scores"], scores, len(scores))

        def execute(stream: int) -> bool:
            assert stream == HostCuda.stream
            self.said.append(("execute_async_v3", stream))
            self.cuda.submit(compute)
            if context._values["profiler"] is not None:
                for name in self.layer_names:
                    context.profiler.report_layer_time(name, 0.25)
            return True

        context = Thing(
            self,
            "IExecutionContext",
            set_tensor_address=lambda name, address: bool(bound.update({name: address})) or True,
            execute_async_v3=execute,
            profiler=None,
        )
        return context


_BASES = ("ILogger", "IProfiler", "IProgressMonitor")


def _base(double: Double, name: str) -> type:
    """A class to derive from; every public method of the derived one must be the release's."""

    class Meta(type):
        def __getattr__(cls, member: str) -> Any:
            double.require(name, member)
            return Member(f"{name}.{member}")

    class Base(metaclass=Meta):
        def __init_subclass__(cls) -> None:
            for method, value in vars(cls).items():
                if callable(value) and not method.startswith("_"):
                    double.require(name, method)

    return Base
