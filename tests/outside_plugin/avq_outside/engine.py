"""An engine that is compiled ahead, on OpenCV's own networks: ``--target outside-dnn``."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avq.errors import BundleError, ModelError, RequestError
from avq.types import U8, CompiledEngine, EngineStatus, LayerTime, RawOutputs, SessionOptions

_MAGIC = b"OUTSIDE-DNN-1\n"
_ARCHITECTURES = ("cpu64",)


class DnnSession:
    """One network; it runs every layer in float32."""

    engine, precision = "outside-dnn", "f32"

    def __init__(self, net: Any, picture: Any) -> None:
        self._net = net
        self._names = list(net.getUnconnectedOutLayersNames())
        self._input = picture.name
        self._shape = tuple(dim.dim_value for dim in picture.type.tensor_type.shape.dim)

    def infer(self, tensor: U8) -> RawOutputs:
        if tensor.dtype != np.uint8 or tensor.shape != self._shape:
            raise RequestError("the picture does not fit", seen=f"{tensor.dtype} {tensor.shape}")
        self._net.setInput(tensor)
        return {
            name: out.copy() for name, out in zip(self._names, self._net.forward(self._names), strict=True)
        }

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        if set(feeds) != {self._input}:
            raise RequestError("wrong inputs", seen=", ".join(feeds), fix=f"feed {self._input}")
        return self.infer(feeds[self._input])

    def require_planned(self, wanted: Mapping[str, str]) -> tuple[str, ...]:
        """PlannedSession: refuse a plan in integers, which this runtime ignores."""
        ignored = [node for node, precision in wanted.items() if precision == "int8"]
        if ignored:
            raise ModelError("outside-dnn runs in float32 only", seen=", ".join(ignored[:4]))
        return ()

    def layers(self, picture: U8, rounds: int) -> list[LayerTime]:
        """Median nanoseconds per layer."""
        import cv2

        profiles = []
        for _ in range(rounds):
            self.infer(picture)
            profiles.append(np.ravel(self._net.getPerfProfile()[1]))
        ns = np.median(profiles, axis=0) * 1e9 / cv2.getTickFrequency()
        names = list(self._net.getLayerNames())
        return [LayerTime(name, (name,), int(each)) for name, each in zip(names, ns, strict=False)]

    def close(self) -> None:
        self._net = None


class DnnEngine:
    """CompilingEngine and ProfilingEngine; a compiled engine is the model behind a magic line."""

    name, float_precisions = "outside-dnn", ("f32",)
    compiles_on_target = False

    def status(self) -> EngineStatus:
        here = importlib.util.find_spec("cv2") is not None
        return EngineStatus(
            self.name, here, "1", here, here, "" if here else "pip install opencv-python-headless"
        )

    def encodings(self) -> tuple[str, ...]:
        return ()

    def open(self, model: bytes | Path, options: SessionOptions) -> DnnSession:
        import cv2
        import onnx

        try:
            data = Path(model).read_bytes() if isinstance(model, (str, Path)) else model
            (picture,) = onnx.load_model_from_string(data).graph.input
            return DnnSession(cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8)), picture)
        except Exception as error:  # neither library has a common base of its errors
            raise ModelError("OpenCV cannot read the model", seen=str(error)) from None

    def architecture(self) -> str:
        return _ARCHITECTURES[0]

    def chosen_architectures(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in _ARCHITECTURES:
                raise RequestError(
                    f"outside-dnn builds nothing for '{name}'", fix=f"valid: {_ARCHITECTURES[0]}"
                )
        return _ARCHITECTURES

    def compile(
        self,
        model: bytes,
        architecture: str,
        options: Any = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> CompiledEngine:
        if options is not None:
            raise RequestError("outside-dnn has no build options", seen=type(options).__name__)
        before_s = time.monotonic()
        report("reading the model")
        self.open(model, SessionOptions()).close()
        return CompiledEngine(architecture, _MAGIC + model, time.monotonic() - before_s, 1)

    def open_engine(self, engine: bytes, precision: str) -> DnnSession:
        if not engine.startswith(_MAGIC):
            raise BundleError("this is no engine of outside-dnn", fix="compile it again")
        return self.open(engine.removeprefix(_MAGIC), SessionOptions())

    def layer_times(
        self, models: Sequence[bytes], options: SessionOptions, picture: U8, *, rounds: int = 40
    ) -> list[list[LayerTime]]:
        return [self.open(model, options).layers(picture, rounds) for model in models]
