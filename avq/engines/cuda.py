"""The few things of CUDA that engines need: a stream, memory, copies, events, graphs.

pycuda first, `cuda.bindings` where it is not installed; nothing outside this file imports either. Both work in the
device's primary context, the one TensorRT uses too, so nothing here depends on how many arguments cuCtxCreate takes
(two up to CUDA 12, three from 13). pycuda has no graphs; their six functions are called in the driver itself, which
gives both libraries the same ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from avq.errors import MachineError
from avq.types import AnyArray

#: Import name -> distribution, in the order they are tried.
LIBRARIES = {"pycuda": "pycuda", "cuda.bindings": "cuda-bindings"}
_INSTALL = "pip install cuda-bindings, or pycuda beside a CUDA toolkit"
_CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on calling CUDA
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


class Cuda(Protocol):
    """One stream on the first card, with the memory allocated on it. One thread at a time."""

    stream: int

    def device_bytes(self, size: int) -> int:
        """The address of new device memory."""
        ...

    def pinned(self, shape: Sequence[int], dtype: str) -> AnyArray:
        """New page-locked host memory: copies from and to it need no staging."""
        ...

    def to_device(self, address: int, array: AnyArray) -> None:
        """Queue a copy."""
        ...

    def to_host(self, array: AnyArray, address: int) -> None:
        """Queue a copy."""
        ...

    def mark(self) -> Any:
        """Queue an event: the moment the card gets here."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds on the card between two events that have passed."""
        ...

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """What ``queue`` queues, recorded instead of run: call the result to queue all of it at once.

        Addresses are those of the recording. Raises MachineError when something in it cannot be recorded.
        """
        ...

    def synchronize(self) -> None: ...

    def close(self) -> None:
        """Free everything."""
        ...


@dataclass(frozen=True, slots=True)
class Card:
    """The first GPU, as the driver describes it; ``architecture`` such as "sm87"."""

    name: str
    architecture: str


@lru_cache(maxsize=1)
def first_card() -> Card | None:
    """None without an NVIDIA driver or without a card. Needs neither of the two libraries."""
    driver = _driver()
    count, device = ctypes.c_int(0), ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    name, capability = ctypes.create_string_buffer(256), []
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        capability.append(number.value)
    return Card(name.value.decode(errors="replace"), f"sm{capability[0]}{capability[1]}")


def why_no_card() -> str:
    """'' when there is a card and a library for its memory."""
    if _driver() is None:
        return "no NVIDIA driver"
    if first_card() is None:
        return "the NVIDIA driver finds no GPU"
    return "" if installed_library() else f"no library for CUDA memory: {_INSTALL}"


def installed_library() -> str:
    """Which library `open_cuda` would use; '' for none."""
    return next((name for name in LIBRARIES if _is_installed(name)), "")


def describe_library() -> dict[str, str]:
    """A line of ``avq doctor``: name ('' for none), version, and why it is this one."""
    name = installed_library()
    if not name:
        why = f"neither {' nor '.join(LIBRARIES)} is installed; only GPU engines need one: {_INSTALL}"
        return {"name": "", "version": "", "why": why}
    first = next(iter(LIBRARIES))
    why = "tried first" if name == first else f"{first} is not installed"
    return {"name": name, "version": _version(LIBRARIES[name]), "why": why}


def open_cuda() -> Cuda:
    """A stream on the first card. Raises MachineError without a library for it, or without a card."""
    name = installed_library()
    if not name:
        raise MachineError(
            "no library for CUDA memory is installed", seen=f"neither {' nor '.join(LIBRARIES)}", fix=_INSTALL
        )
    try:
        return PyCuda() if name == "pycuda" else Bindings()
    except MachineError:
        raise
    except Exception as error:  # vendor errors share no base
        raise MachineError("CUDA cannot start here", seen=str(error)[:400], fix="avq doctor") from error


class PyCuda:
    """pycuda. Its context is entered by every thread that calls in."""

    def __init__(self) -> None:
        from pycuda import driver

        driver.init()
        self._driver = driver
        self._context = driver.Device(0).retain_primary_context()
        self._entered: set[int] = set()
        self._enter()
        self._stream = driver.Stream(_NON_BLOCKING)
        self._memory: list[Any] = []
        self._graphs: list[_Graph] = []
        self.stream = int(self._stream.handle)

    def _enter(self) -> None:
        thread = threading.get_ident()
        if thread not in self._entered:
            self._context.push()
            self._entered.add(thread)

    def device_bytes(self, size: int) -> int:
        self._enter()
        self._memory.append(self._driver.mem_alloc(max(size, 1)))
        return int(self._memory[-1])

    def pinned(self, shape: Sequence[int], dtype: str) -> AnyArray:
        self._enter()
        array: AnyArray = self._driver.pagelocked_empty(tuple(shape), np.dtype(dtype))
        return array

    def to_device(self, address: int, array: AnyArray) -> None:
        self._enter()
        self._driver.memcpy_htod_async(address, array, self._stream)

    def to_host(self, array: AnyArray, address: int) -> None:
        self._enter()
        self._driver.memcpy_dtoh_async(array, address, self._stream)

    def mark(self) -> Any:
        self._enter()
        event = self._driver.Event()
        event.record(self._stream)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(start.time_till(end))

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        self._enter()
        self._graphs.append(_Graph(self.stream, queue))
        return self._graphs[-1].launch

    def synchronize(self) -> None:
        self._enter()
        self._stream.synchronize()

    def close(self) -> None:
        self._enter()
        for graph in self._graphs:
            graph.close()
        for block in self._memory:
            block.free()
        self._graphs.clear()
        self._memory.clear()
        self._context.pop()
        self._entered.discard(threading.get_ident())


class Bindings:
    """NVIDIA's own bindings of the runtime library; every call returns (status, values ...)."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[_Graph] = []
        self._events: list[Any] = []
        self._call("cudaSetDevice", 0)
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self.stream = int(self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status) != 0:
            raise MachineError("a CUDA call failed", seen=f"{name}: {status}", fix="avq doctor")
        return values[0] if values else None

    def device_bytes(self, size: int) -> int:
        self._memory.append(int(self._call("cudaMalloc", max(size, 1))))
        return self._memory[-1]

    def pinned(self, shape: Sequence[int], dtype: str) -> AnyArray:
        wanted = np.dtype(dtype)
        size = max(int(np.prod(shape, dtype=np.int64)) * wanted.itemsize, 1)
        self._pinned.append(int(self._call("cudaMallocHost", size)))
        raw = (ctypes.c_byte * size).from_address(self._pinned[-1])
        array: AnyArray = np.ndarray(tuple(shape), wanted, buffer=memoryview(raw).cast("B"))
        return array

    def to_device(self, address: int, array: AnyArray) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self._stream)

    def to_host(self, array: AnyArray, address: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self._stream)

    def mark(self) -> Any:
        self._events.append(self._call("cudaEventCreate"))
        self._call("cudaEventRecord", self._events[-1], self._stream)
        return self._events[-1]

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(self._call("cudaEventElapsedTime", start, end))

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        self._graphs.append(_Graph(self.stream, queue))
        return self._graphs[-1].launch

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        for graph in self._graphs:
            graph.close()
        for event in self._events:
            self._call("cudaEventDestroy", event)
        for address in self._memory:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        for kept in (self._graphs, self._events, self._memory, self._pinned):
            kept.clear()
        self._call("cudaStreamDestroy", self._stream)


class _Graph:
    """What was queued on a stream while it was recorded, ready to be queued again in one call."""

    def __init__(self, stream: int, queue: Callable[[], None]) -> None:
        self._stream = ctypes.c_void_p(stream)
        graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        with _recording(self._stream, graph):
            queue()
        try:
            _check("cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, ctypes.c_uint64(0))
        finally:
            _check("cuGraphDestroy", graph)

    def launch(self) -> None:
        _check("cuGraphLaunch", self._ready, self._stream)

    def close(self) -> None:
        _check("cuGraphExecDestroy", self._ready)


@contextlib.contextmanager
def _recording(stream: ctypes.c_void_p, graph: ctypes.c_void_p) -> Iterator[None]:
    """The stream leaves the recording state whatever happens inside, else it could never be used again."""
    _check("cuStreamBeginCapture_v2", stream, ctypes.c_int(_CAPTURE_THREAD_LOCAL))
    try:
        yield
    except BaseException:
        driver = _driver()
        if driver is not None and driver.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0 and graph.value:
            driver.cuGraphDestroy(graph)
        raise
    _check("cuStreamEndCapture", stream, ctypes.byref(graph))


def _check(name: str, *arguments: Any) -> None:
    driver = _driver()
    status = getattr(driver, name)(*arguments) if driver is not None else -1
    if status != 0:
        raise MachineError("a CUDA call failed", seen=f"{name}: error {status}", fix="avq doctor")


@lru_cache(maxsize=1)
def _driver() -> Any:
    """NVIDIA's driver library; None where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # no parent package
        return False


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
