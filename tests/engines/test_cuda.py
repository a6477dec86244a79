"""The layer over CUDA: which library it takes and why, what it queues, and that it never leaves a mess behind."""

from __future__ import annotations

import ctypes
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from avq.engines import cuda
from avq.errors import MachineError


class Driver:
    """The driver's C functions; each call is kept, ``failing`` ones return an error code."""

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuStreamEndCapture":
                arguments[1]._obj.value = 77
            if name == "cuGraphInstantiateWithFlags":
                assert arguments[1].value == 77
                arguments[0]._obj.value = 78
            if name == "cuGraphLaunch":
                assert (arguments[0].value, arguments[1].value) == (78, 5)
            return 999 if name == self._failing else 0

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    double = Driver()
    monkeypatch.setattr(cuda, "_driver", lambda: double)
    return double


class Runtime:
    """`cuda.bindings.runtime` on host memory: device addresses are addresses of arrays, copies are at once."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.blocks: dict[int, Any] = {}

    def _block(self, size: int) -> int:
        block = (ctypes.c_byte * size)()
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in ("cudaMalloc", "cudaMallocHost"):
                return 0, self._block(arguments[0])
            if name in ("cudaFree", "cudaFreeHost"):
                del self.blocks[arguments[0]]
            if name == "cudaMemcpyAsync":
                ctypes.memmove(arguments[0], arguments[1], arguments[2])
            answers = {"cudaStreamCreateWithFlags": 5, "cudaEventCreate": 6, "cudaEventElapsedTime": 1.5}
            return (0, answers[name]) if name in answers else (0,)

        return call


@pytest.fixture
def opened(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> tuple[cuda.Bindings, Runtime]:
    runtime = Runtime()
    package = SimpleNamespace(bindings=SimpleNamespace(runtime=runtime))
    for name, module in (("cuda", package), ("cuda.bindings", package.bindings)):
        monkeypatch.setitem(sys.modules, name, module)
    return cuda.Bindings(), runtime


def test_bytes_come_back_as_they_went(opened: tuple[cuda.Bindings, Runtime]) -> None:
    bindings, runtime = opened
    sent, received = bindings.pinned((2, 3), "uint8"), bindings.pinned((2, 3), "uint8")
    sent[:] = np.arange(6).reshape(2, 3)
    address = bindings.device_bytes(sent.nbytes)
    bindings.to_device(address, sent)
    bindings.to_host(received, address)
    bindings.synchronize()
    assert np.array_equal(received, sent)
    assert bindings.elapsed_ms(bindings.mark(), bindings.mark()) == 1.5
    bindings.close()
    assert not runtime.blocks and runtime.calls[-1] == "cudaStreamDestroy"


def test_a_recording_is_queued_in_one_call(opened: tuple[cuda.Bindings, Runtime], driver: Driver) -> None:
    bindings, _ = opened
    queued: list[str] = []
    launch = bindings.capture(lambda: queued.append("work"))
    assert queued == ["work"]
    begun = driver.calls.index("cuStreamBeginCapture_v2")
    assert (
        begun < driver.calls.index("cuStreamEndCapture") < driver.calls.index("cuGraphInstantiateWithFlags")
    )
    launch()
    launch()
    assert driver.calls.count("cuGraphLaunch") == 2 and queued == ["work"]
    bindings.close()
    assert driver.calls.count("cuGraphDestroy") == driver.calls.count("cuGraphExecDestroy") == 1


def test_a_recording_that_fails_leaves_the_stream_usable(
    opened: tuple[cuda.Bindings, Runtime], driver: Driver
) -> None:
    bindings, _ = opened

    def refuse() -> None:
        raise RuntimeError("not recordable")

    with pytest.raises(RuntimeError, match="not recordable"):
        bindings.capture(refuse)
    assert driver.calls[-2:] == ["cuStreamEndCapture", "cuGraphDestroy"]


def test_a_call_the_card_refuses_is_named(
    opened: tuple[cuda.Bindings, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    bindings, _ = opened
    monkeypatch.setattr(cuda, "_driver", lambda: Driver(failing="cuGraphInstantiateWithFlags"))
    with pytest.raises(MachineError) as refused:
        bindings.capture(lambda: None)
    assert "cuGraphInstantiateWithFlags: error 999" in refused.value.seen


@pytest.mark.parametrize(
    ("installed", "name", "why"),
    [
        ({"pycuda", "cuda.bindings"}, "pycuda", "tried first"),
        ({"cuda.bindings"}, "cuda.bindings", "pycuda is not installed"),
        (set(), "", "neither pycuda nor cuda.bindings"),
    ],
)
def test_pycuda_goes_first_and_doctor_says_why(
    installed: Any, name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "_is_installed", lambda asked: asked in installed)
    described = cuda.describe_library()
    assert described["name"] == name and why in described["why"]
    if not name:
        with pytest.raises(MachineError, match="no library for CUDA memory"):
            cuda.open_cuda()


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_driver", lambda: None)
    cuda.first_card.cache_clear()
    assert cuda.first_card() is None and cuda.why_no_card() == "no NVIDIA driver"


def test_the_card_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Orin(Driver):
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> int:
                if name == "cuDeviceGetCount":
                    arguments[0]._obj.value = 1
                if name == "cuDeviceGetName":
                    arguments[0].value = b"Orin"
                if name == "cuDeviceGetAttribute":
                    arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
                return 0

            return call

    monkeypatch.setattr(cuda, "_driver", Orin)
    cuda.first_card.cache_clear()
    assert cuda.first_card() == cuda.Card("Orin", "sm87")
    cuda.first_card.cache_clear()


class PyCudaDriver:
    """`pycuda.driver`, with the names that pycuda 2026.1 has and no others."""

    def __init__(self) -> None:
        self.contexts = 0
        self.Stream = lambda flags: SimpleNamespace(handle=5, flags=flags, synchronize=lambda: None)
        self.Event = lambda: SimpleNamespace(record=lambda stream: None, time_till=lambda other: 1.5)

    def init(self) -> None: ...

    def Device(self, number: int) -> Any:  # noqa: N802
        return SimpleNamespace(retain_primary_context=lambda: self)

    def push(self) -> None:
        self.contexts += 1

    def pop(self) -> None:
        self.contexts -= 1

    def mem_alloc(self, size: int) -> Any:
        block = np.zeros(size, np.uint8)

        class Address(int):
            kept: np.ndarray | None = block

            def free(self) -> None:
                Address.kept = None

        return Address(block.ctypes.data)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def memcpy_htod_async(self, address: int, array: Any, stream: Any) -> None:
        ctypes.memmove(int(address), array.ctypes.data, array.nbytes)

    def memcpy_dtoh_async(self, array: Any, address: int, stream: Any) -> None:
        ctypes.memmove(array.ctypes.data, int(address), array.nbytes)


def test_pycuda_is_entered_by_every_thread_that_calls(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = PyCudaDriver()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=double))
    monkeypatch.setattr(cuda, "_is_installed", lambda name: name == "pycuda")
    opened = cuda.open_cuda()
    assert isinstance(opened, cuda.PyCuda) and opened.stream == 5 and double.contexts == 1
    sent, received = opened.pinned((4,), "uint8"), opened.pinned((4,), "uint8")
    sent[:] = 3
    address = opened.device_bytes(4)
    opened.to_device(address, sent)
    worker = threading.Thread(target=opened.to_host, args=(received, address))
    worker.start()
    worker.join()
    assert double.contexts == 2 and received.tolist() == [3, 3, 3, 3]
    opened.capture(lambda: None)()
    assert opened.elapsed_ms(opened.mark(), opened.mark()) == 1.5
    opened.close()
    assert "cuGraphExecDestroy" in driver.calls
