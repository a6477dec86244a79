"""INT8 calibration by TensorRT 10 itself, fed with avq's own network inputs, through its calibration cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from avq.engines.cuda import Cuda
from avq.errors import RequestError, nearest
from avq.types import U8

#: avq's name -> the class; entropy is the second kind: the first leaves fused tensors without a range.
METHODS = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


def calibrator(
    trt: Any,
    method: str,
    pictures: Iterable[U8],
    *,
    cache: bytes,
    keep: Callable[[bytes], None],
    cuda: Cuda | None,
) -> Any:
    """An object for ``config.int8_calibrator``.

    One picture is one batch: TensorRT's histograms grow with the largest value seen, so its scales depend on
    batch size and order; both are the set's order here, and the cache that comes out is kept.

    Raises RequestError for an unknown method, or with neither pictures nor a cache.
    """
    if method not in METHODS:
        raise RequestError(f"TensorRT has no calibration '{method}'", fix=nearest(method, METHODS))
    if cuda is None and not cache:
        raise RequestError(
            "there is nothing to calibrate with", fix="give a calibration cache, or pictures and a card"
        )
    base: Any = getattr(trt, METHODS[method])

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._pictures = iter(pictures)
            self._address = 0

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            picture = next(self._pictures, None)
            if picture is None or cuda is None:
                return None
            if not self._address:
                self._address = cuda.device_bytes(picture.nbytes)
            cuda.to_device(self._address, picture)
            cuda.synchronize()
            return [self._address for _ in names]

        def read_calibration_cache(self) -> bytes | None:
            return cache or None

        def write_calibration_cache(self, cache: Any) -> None:
            keep(bytes(memoryview(cache)))

    return Calibrator()
