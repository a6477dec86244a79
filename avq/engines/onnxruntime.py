"""onnxruntime on the CPU: the reference semantics, and an engine in its own right.

The only importer of ``onnxruntime``. With ``optimise=False`` every graph rewrite is off, so a Q/DQ model
computes what its nodes say: that is the reference all other engines are compared with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avq.engines import common
from avq.engines.cpu import is_x86
from avq.errors import MachineError, ModelError, RequestError
from avq.types import U8, AnyArray, EnginePrecision, EngineStatus, RawOutputs, SessionOptions, TensorView

NAME = "onnxruntime"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_QUANTIZED_MARKS = (b"QuantizeLinear", b"ConvInteger", b"MatMulInteger", b"QLinear")
_QUIET = 4  # fatal only: what goes wrong is raised, not logged


class OnnxRuntimeEngine:
    """Microsoft's runtime, CPU execution provider, one fixed number of threads."""

    name = NAME

    def status(self) -> EngineStatus:
        try:
            ort = _load()
        except MachineError as error:
            return EngineStatus(NAME, False, "", False, False, f"{error.seen}; {error.fix}")
        return EngineStatus(NAME, True, str(ort.__version__), True, True, "")

    @property
    def float_precisions(self) -> tuple[EnginePrecision, ...]:
        return ("f32",) if self.status().available else ()

    def encodings(self) -> tuple[str, ...]:
        """x86 multiplies unsigned by signed bytes natively; there S8 data is several times slower."""
        return ("u8", "asymmetric", "s8") if is_x86() else ("s8", "u8", "asymmetric")

    def open(self, model: bytes | Path, options: SessionOptions) -> OnnxRuntimeSession:
        if options.precision != "f32":
            raise MachineError(
                f"onnxruntime cannot run the float parts in {options.precision} on a CPU",
                seen=f"precision {options.precision}",
                fix="ask for f32, or use openvino",
            )
        ort, source = _load(), common.model_bytes(model)
        integers = options.optimise and options.integers
        profiled = integers and any(mark in source for mark in _QUANTIZED_MARKS)
        # A path keeps weights in external files reachable; bytes do not.
        given = str(model) if isinstance(model, Path) else source
        with _profile_folder() if profiled else contextlib.nullcontext() as folder:
            settings = _settings(ort, options, folder)
            session = OnnxRuntimeSession(ort, _create(ort, given, settings), profiled=folder is not None)
        if profiled and folder is None:
            session.precision = "int8+f32"  # nowhere to write the profile: as the file says
        return session


class OnnxRuntimeSession:
    """An opened model with its buffers bound; ``infer`` allocates nothing of the picture's size."""

    engine = NAME

    def __init__(self, ort: Any, session: Any, *, profiled: bool) -> None:
        self._session = session
        self._quiet = ort.RunOptions()
        self._quiet.log_severity_level = _QUIET
        self.inputs = tuple(_view(arg) for arg in session.get_inputs())
        self.outputs = tuple(_view(arg) for arg in session.get_outputs())
        self._names = [t.name for t in self.outputs]
        self._picture = common.picture_input(self.inputs)
        self._bound_to = 0
        self._buffers: dict[str, AnyArray] = {}
        first = self._warm_up()
        self.precision = _ran_in(Path(session.end_profiling())) if profiled else "f32"
        self._binding = self._bind(first) if self._picture is not None else None

    def infer(self, tensor: U8) -> RawOutputs:
        if self._picture is None:
            raise common.no_picture(self.inputs)
        tensor = common.check_picture(tensor, self._picture)
        if self._binding is None:
            return self._run({self._picture.name: tensor})
        address = tensor.ctypes.data
        if address != self._bound_to:
            self._binding.bind_input(self._picture.name, "cpu", 0, np.uint8, tensor.shape, address)
            self._bound_to = address
        self._session.run_with_iobinding(self._binding, self._quiet)
        return self._buffers

    def run(self, feeds: Mapping[str, Any]) -> RawOutputs:
        return self._run(common.check_feeds(feeds, self.inputs))

    def close(self) -> None:
        """Free the runtime's memory; the session cannot be used afterwards."""
        self._binding = None
        self._session = None

    def _run(self, feeds: Mapping[str, AnyArray]) -> RawOutputs:
        try:
            values = self._session.run(self._names, dict(feeds), self._quiet)
        except Exception as error:  # the vendor's exceptions share no useful base
            raise RequestError(
                "onnxruntime could not run the model on these inputs",
                seen=str(error)[:400],
                fix="check shapes and dtypes against avq inspect",
            ) from error
        return dict(zip(self._names, values, strict=True))

    def _warm_up(self) -> RawOutputs:
        """Two runs on black: kernels pick their plans and the arena takes its final size."""
        if any(-1 in t.shape or not t.dtype for t in self.inputs):
            return {}
        black = {t.name: np.zeros(t.shape, t.dtype) for t in self.inputs}
        try:
            self._run(black)
            return self._run(black)
        except RequestError as error:
            raise ModelError(
                "onnxruntime opened the model but cannot run it",
                seen=error.seen,
                fix="check the model: avq inspect MODEL.onnx",
            ) from error

    def _bind(self, first: RawOutputs) -> Any:
        """A binding to buffers of our own; None when an output has no fixed shape, or is an input as well."""
        inputs = {view.name for view in self.inputs}
        for view in self.outputs:
            value = first[view.name]
            if view.name in inputs or not isinstance(value, np.ndarray) or value.shape != view.shape:
                return None
        binding = self._session.io_binding()
        for view in self.outputs:
            buffer = np.empty(view.shape, view.dtype)
            self._buffers[view.name] = buffer
            binding.bind_output(view.name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
        return binding


def _load() -> Any:
    # Its releases send usage to their makers, with an id kept in the home folder, unless this is set at import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except Exception as error:  # a half-installed runtime raises anything
        raise common.missing_runtime(NAME, error) from error
    ort.set_default_logger_severity(_QUIET)
    return ort


@contextlib.contextmanager
def _profile_folder() -> Iterator[Path | None]:
    """A folder for one profile, gone afterwards; None where the file system cannot be written to."""
    try:
        folder = tempfile.mkdtemp(prefix="avq-ort-")
    except OSError:
        yield None
        return
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(ort: Any, options: SessionOptions, profile: Path | None) -> Any:
    level = ort.GraphOptimizationLevel
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if options.optimise else level.ORT_DISABLE_ALL
    # A pattern preplans one block for all activations: measured 30 MB more and no faster.
    settings.enable_mem_pattern = False
    # The arena settles in the warm-up and is then reused: no allocator call of size on the frame path.
    # Sessions that judge come and go by the dozen in a build; plain malloc gives their memory back.
    settings.enable_cpu_mem_arena = options.optimise and options.integers
    if not options.integers:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.log_severity_level = _QUIET
    if profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile / "open")
    return settings


def _create(ort: Any, model: bytes | str, settings: Any) -> Any:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except state.NotImplemented as error:
        raise MachineError(
            "onnxruntime has no kernel for a node of the model",
            seen=str(error)[:400],
            fix="try a newer onnxruntime (from 1.24 on they need Python 3.11), or the target openvino",
        ) from error
    except Exception as error:
        raise common.unreadable(NAME, error) from error


def _view(arg: Any) -> TensorView:
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in arg.shape or ())
    return TensorView(arg.name, _DTYPES.get(arg.type, ""), shape)


def _ran_in(profile: Path) -> str:
    """Precision of the compute kernels that really ran, from the runtime's own profile of the warm-up."""
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            "onnxruntime wrote no profile, so kernel precisions are unknown",
            seen=str(error),
            fix="check the temporary folder",
        ) from error
    ops = {str(event.get("args", {}).get("op_name", "")) for event in events if event.get("cat") == "Node"}
    compute = {op for op in ops if common.is_compute(op)}
    int8 = any(op.startswith("QLinear") or "Integer" in op or op.startswith("QGemm") for op in compute)
    return common.precision_name(int8, "f32")
