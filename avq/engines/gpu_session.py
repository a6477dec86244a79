"""Running a TensorRT engine: buffers bound once, copies and kernels of a frame replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avq.engines import common
from avq.engines.cuda import Cuda
from avq.errors import AvqError, MachineError, ModelError, RequestError
from avq.types import U8, AnyArray, RawOutputs, TensorView

_WARM_UP = 3


class GpuSession:
    """An engine with its buffers bound; ``infer`` copies in, runs, copies out.

    Attributes:
        precision: what its convolutions and matrix products run in.
        why_no_graph: '' when a frame is one launch of a CUDA graph.
    """

    def __init__(
        self,
        name: str,
        trt: Any,
        runtime: Any,
        engine: Any,
        context: Any,
        cuda: Cuda,
        *,
        precision: str,
        graph: bool = True,
    ) -> None:
        self.engine, self.precision = name, precision
        self._runtime, self._engine, self._context, self._cuda = runtime, engine, context, cuda
        self._trt = trt
        views = [(view(trt, engine, i), is_input(trt, engine, i)) for i in range(engine.num_io_tensors)]
        self.inputs = tuple(one for one, takes in views if takes)
        self.outputs = tuple(one for one, takes in views if not takes)
        _require_fixed((*self.inputs, *self.outputs), name)
        self._picture = common.picture_input(self.inputs)
        self._host = {v.name: cuda.pinned(v.shape, v.dtype) for v in (*self.inputs, *self.outputs)}
        self._device = {key: cuda.device_bytes(array.nbytes) for key, array in self._host.items()}
        for key, address in self._device.items():
            self._context.set_tensor_address(key, address)
        self._launch = self._queue
        self.why_no_graph = "not requested"
        self._warm_up()
        if graph:
            self._record()

    def infer(self, tensor: U8) -> RawOutputs:
        if self._picture is None:
            raise common.no_picture(self.inputs)
        np.copyto(self._host[self._picture.name], common.check_picture(tensor, self._picture))
        return self._run()

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        for name, array in common.check_feeds(feeds, self.inputs).items():
            np.copyto(self._host[name], array)
        return self._run()

    def milliseconds_on_card(self, rounds: int) -> list[float]:
        """Time of one frame between events on the card, copies included; the last picture again."""
        times = []
        for _ in range(rounds):
            start = self._cuda.mark()
            self._launch()
            end = self._cuda.mark()
            self._cuda.synchronize()
            times.append(self._cuda.elapsed_ms(start, end))
        return times

    def layer_milliseconds(self, rounds: int) -> list[tuple[str, float]]:
        """(layer, median ms) in execution order, on a context of its own: profiling slows a frame."""
        times: dict[str, list[float]] = {}
        context = self._engine.create_execution_context()
        context.profiler = _profiler(self._trt, times)
        for key, address in self._device.items():
            context.set_tensor_address(key, address)
        for _ in range(rounds):
            context.execute_async_v3(self._cuda.stream)
            self._cuda.synchronize()
        return [(name, float(np.median(found))) for name, found in times.items()]

    def close(self) -> None:
        """Free the card's memory; the session cannot be used afterwards."""
        self._context = self._engine = self._runtime = None
        self._host.clear()
        self._cuda.close()

    def _warm_up(self) -> None:
        """Black pictures: kernels are loaded, clocks rise."""
        for array in self._host.values():
            array[...] = 0
        for _ in range(_WARM_UP):
            self._run()

    def _record(self) -> None:
        """One launch in place of dozens; without it, a frame still runs."""
        try:
            self._launch = self._cuda.capture(self._queue)
            self._run()
            self.why_no_graph = ""
        except AvqError as error:
            self._launch, self.why_no_graph = self._queue, error.seen or error.what

    def _queue(self) -> None:
        for one in self.inputs:
            self._cuda.to_device(self._device[one.name], self._host[one.name])
        if not self._context.execute_async_v3(self._cuda.stream):
            raise RequestError(f"{self.engine} could not run the engine", fix="avq doctor")
        for one in self.outputs:
            self._cuda.to_host(self._host[one.name], self._device[one.name])

    def _run(self) -> dict[str, AnyArray]:
        self._launch()
        self._cuda.synchronize()
        return {one.name: self._host[one.name] for one in self.outputs}


def view(trt: Any, engine: Any, index: int) -> TensorView:
    """Name, dtype and shape of an engine's input or output."""
    name = engine.get_tensor_name(index)
    dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    return TensorView(name, str(dtype), tuple(int(n) for n in engine.get_tensor_shape(name)))


def is_input(trt: Any, engine: Any, index: int) -> bool:
    """Whether that tensor is fed."""
    return bool(engine.get_tensor_mode(engine.get_tensor_name(index)) == trt.TensorIOMode.INPUT)


def require_card(name: str, why_not: str) -> None:
    """MachineError when ``why_not`` says that nothing can run here."""
    if why_not:
        raise MachineError(f"{name} cannot run here", seen=why_not, fix="avq doctor says what is missing")


def _require_fixed(views: tuple[TensorView, ...], name: str) -> None:
    for one in views:
        if any(length < 0 for length in one.shape):
            raise ModelError(
                f"the tensor '{one.name}' has no fixed shape",
                seen=str(list(one.shape)),
                fix=f"export the model with fixed shapes: {name} binds its buffers once",
            )


def _profiler(trt: Any, times: dict[str, list[float]]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()
