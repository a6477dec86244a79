"""Write the names that TensorRT's Python classes have, from what can be had without TensorRT itself.

    pip download tensorrt_cu12_bindings==10.16.1.11 tensorrt_cu12_bindings==11.4.0.106 tensorrt-stubs --no-deps
    python tests/engines/write_tensorrt_names.py BINDINGS.whl STUBS.whl > tests/engines/tensorrt_names_10.16.txt
    python tests/engines/write_tensorrt_names.py BINDINGS.whl > tests/engines/tensorrt_names_11.4.txt

The bindings' wheel holds a library that does not load without TensorRT, so a name is believed when a class of a close
relative has it (the public stubs of 10.13 for 10.x, the classes of TensorRT for RTX for 11.x) and the library holds
it as a string of its own. One ``Class.member`` per line; a class without members stands alone.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

#: Classes that an engine may touch.
CLASSES = (
    "Builder", "BuilderFlag", "CalibrationAlgoType", "DataType", "DeviceType", "EngineInspector",
    "HardwareCompatibilityLevel", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer",
    "ILogger", "IInt8Calibrator", "IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator", "INetworkDefinition",
    "IProfiler", "IProgressMonitor", "ITensor", "ITimingCache", "LayerInformationFormat", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime", "TensorIOMode",
)  # fmt: skip
_CLASS = re.compile(r"^class (\w+)(?:\(([^)]*)\))?:\n((?:(?:[ \t].*)?\n)*)", re.MULTILINE)
_MEMBER = re.compile(r"^ {4,8}(?:def |class )?([A-Za-z]\w*)(?=[(:] ?)", re.MULTILINE)
FUNCTIONS = ("__version__", "nptype", "init_libnvinfer_plugins")


def names(bindings: Path, stubs: Path | None) -> list[str]:
    """Sorted ``Class.member`` lines."""
    library = _library(bindings)
    known = _of_stubs(stubs) if stubs is not None else _of_rtx()
    found = {f"{owner}.{member}" for owner, member in known if f"{member}\0".encode() in library}
    found |= {owner for owner, _ in known if f"{owner}\0".encode() in library}
    return sorted(found | set(FUNCTIONS))


def _library(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/tensorrt.so")]
        return archive.read(name)


def _of_stubs(wheel: Path) -> set[tuple[str, str]]:
    """By lines: the stub file of 10.13 is not valid Python, so neither ast nor mypy reads it."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("tensorrt_bindings/tensorrt.pyi").decode().replace("\r\n", "\n")
    bodies = {m[1]: (m[2] or "", m[3]) for m in _CLASS.finditer(text)}
    return {(name, member) for name in CLASSES if name in bodies for member in _members(name, bodies)}


def _members(name: str, bodies: dict[str, tuple[str, str]]) -> set[str]:
    bases, body = bodies.get(name, ("", ""))
    found = {m[1] for m in _MEMBER.finditer(body)}
    return found.union(*(_members(base.strip(), bodies) for base in bases.split(",") if base.strip()))


def _of_rtx() -> set[tuple[str, str]]:
    import tensorrt_rtx

    owners = {name: getattr(tensorrt_rtx, name) for name in CLASSES if hasattr(tensorrt_rtx, name)}
    members = {(name, m) for name, owner in owners.items() for m in dir(owner) if not m.startswith("_")}
    severities = getattr(owners.get("ILogger"), "Severity", None)
    return members | {("ILogger", m) for m in getattr(severities, "__members__", {})}


if __name__ == "__main__":
    stub_file = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print("\n".join(names(Path(sys.argv[1]), stub_file)))
