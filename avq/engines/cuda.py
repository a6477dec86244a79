"""The few things of CUDA that engines need: a stream, device and pinned memory, copies.

pycuda first, `cuda.bindings` where it is not installed. Nothing outside this file imports either.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from avq.errors import MachineError
from avq.types import AnyArray

LIBRARIES = ("pycuda", "cuda.bindings")


class Cuda(Protocol):
    """One stream on the first card, with the memory that was asked of it. Not thread-safe."""

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

    def synchronize(self) -> None: ...

    def close(self) -> None:
        """Free everything."""
        ...


def installed_library() -> str:
    """Which library `open_cuda` would use; '' for none."""
    return next((name for name in LIBRARIES if _is_installed(name)), "")


def open_cuda() -> Cuda:
    """A stream on the first card. Raises MachineError without a library for it, or without a card."""
    name = installed_library()
    if not name:
        raise MachineError(
            "no library for CUDA memory is installed",
            seen=f"neither {' nor '.join(LIBRARIES)}",
            fix="pip install cuda-bindings, or pycuda beside a CUDA toolkit",
        )
    try:
        return _PyCuda() if name == "pycuda" else _Bindings()
    except MachineError:
        raise
    except Exception as error:  # vendor errors share no base
        raise MachineError("CUDA cannot start here", seen=str(error)[:400], fix="avq doctor") from error


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # no parent package
        return False


class _PyCuda:
    def __init__(self) -> None:
        from pycuda import driver

        driver.init()
        # The primary context is the one that runtimes in this process share.
        self._context = driver.Device(0).retain_primary_context()
        self._context.push()
        self._driver, self._stream = driver, driver.Stream()
        self._memory: list[Any] = []
        self.stream = int(self._stream.handle)

    def device_bytes(self, size: int) -> int:
        self._memory.append(self._driver.mem_alloc(max(size, 1)))
        return int(self._memory[-1])

    def pinned(self, shape: Sequence[int], dtype: str) -> AnyArray:
        array: AnyArray = self._driver.pagelocked_empty(tuple(shape), np.dtype(dtype))
        return array

    def to_device(self, address: int, array: AnyArray) -> None:
        self._driver.memcpy_htod_async(address, array, self._stream)

    def to_host(self, array: AnyArray, address: int) -> None:
        self._driver.memcpy_dtoh_async(array, address, self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def close(self) -> None:
        for block in self._memory:
            block.free()
        self._memory.clear()
        self._context.pop()


class _Bindings:
    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._memory: list[int] = []
        self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        self._pinned: list[int] = []
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
        import ctypes

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

    def synchronize(self) -> None:
        self._call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        for address in self._memory:
            self._call("cudaFree", address)
        for address in self._pinned:
            self._call("cudaFreeHost", address)
        self._memory.clear()
        self._pinned.clear()
        self._call("cudaStreamDestroy", self._stream)
