"""Signal to quantization-noise ratio per graph output, in decibel, over a stream of pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from avq.errors import DataError, ModelError
from avq.types import F64, AnyArray, RawOutputs


class SqnrMeter:
    """Adds up signal and noise energy; memory does not grow with the number of pictures.

    SQNR = 10 log10(sum(reference^2) / sum((reference - output)^2)), sums in float64 over every element
    of every picture, so that a picture with large outputs weighs more than an empty one.
    """

    def __init__(self) -> None:
        self.images = 0
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}

    def add(self, reference_outputs: RawOutputs, outputs: RawOutputs) -> None:
        """Take one picture's outputs of the float model and of the model under test.

        Raises:
            DataError: the two do not have the same output names or shapes.
            ModelError: an output holds NaN or Inf; it is named.
        """
        _require_same_names(reference_outputs, outputs)
        for name, reference in reference_outputs.items():
            clean = _finite(name, reference, "the reference model")
            noisy = _finite(name, outputs[name], "the model under test")
            _require_same_shape(name, clean, noisy)
            self._signal[name] = self._signal.get(name, 0.0) + _energy(clean)
            self._noise[name] = self._noise.get(name, 0.0) + _energy(clean - noisy)
        self.images += 1

    def result_db(self) -> dict[str, float]:
        """Output name -> dB. ``inf`` where nothing differs, ``-inf`` for noise on a silent output.

        Raises DataError when no picture was added.
        """
        if not self.images:
            raise DataError("no outputs were compared", fix="add at least one picture")
        return {name: _ratio_db(self._signal[name], self._noise[name]) for name in self._signal}


def sqnr_db(reference: AnyArray, output: AnyArray) -> float:
    """SQNR of one tensor against its reference, in dB."""
    meter = SqnrMeter()
    meter.add({"tensor": reference}, {"tensor": output})
    return meter.result_db()["tensor"]


def _energy(values: F64) -> float:
    return float(np.square(values).sum())  # not np.dot: its threads spin when the cores are busy


def _ratio_db(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _finite(name: str, values: AnyArray, whose: str) -> F64:
    wide = np.asarray(values, np.float64)
    bad = int(wide.size - np.count_nonzero(np.isfinite(wide)))
    if bad:
        raise ModelError(
            f"output '{name}' of {whose} is not finite",
            seen=f"{bad} of {wide.size} values are NaN or Inf",
            fix="keep the nodes before it in float, or look at the picture that caused it",
        )
    return wide


def _require_same_names(reference: Mapping[str, AnyArray], outputs: Mapping[str, AnyArray]) -> None:
    if not reference or set(reference) != set(outputs):
        raise DataError(
            "the two models do not have the same outputs",
            seen=f"reference: {sorted(reference)}; under test: {sorted(outputs)}",
            fix="compare a model with its own float parent",
        )


def _require_same_shape(name: str, clean: F64, noisy: F64) -> None:
    if clean.shape != noisy.shape:
        raise DataError(
            f"output '{name}' has another shape than in the reference",
            seen=f"{noisy.shape}, reference {clean.shape}",
            fix="compare raw heads: outputs after NMS differ in length from picture to picture",
        )
