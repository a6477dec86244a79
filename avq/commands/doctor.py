"""``avq doctor``: engines, GPUs, codecs and plugins of this machine. Never raises, changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np

from avq.engines import builtin_engines
from avq.engines.cpu import instruction_set
from avq.engines.cuda import describe_library
from avq.errors import AvqError
from avq.hookspecs import Engine
from avq.plugins import PluginHost, PluginRow
from avq.process import STANDARD_ERROR, suppress_output
from avq.types import EngineStatus

_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


_T = TypeVar("_T")


class EngineJson(TypedDict):
    """Status of one engine; ``why`` states what is missing."""

    name: str
    available: bool
    version: str
    can_build: bool
    can_run: bool
    why: str


class CodecJson(TypedDict):
    """Status of one video codec."""

    name: str
    works: bool
    why: str


class DoctorJson(TypedDict):
    """Object of ``avq doctor --json``; ``cuda`` is the library for GPU memory, ``isa`` the instruction set."""

    engines: list[EngineJson]
    gpus: list[dict[str, str]]
    cuda: dict[str, str]
    plugins: list[PluginRow]
    codecs: list[CodecJson]
    isa: str
    messages: list[str]


def examine(engines: Sequence[Engine] | None = None, host: PluginHost | None = None) -> DoctorJson:
    """Examine this machine.

    Args:
        engines: engines to examine; None takes the built-in ones and those of plugins.
        host: loaded plugins; None loads them, and a failure becomes a message.
    """
    messages: list[str] = []
    if host is None:
        host = _or_message(PluginHost, messages, None)
    chosen = _engines(host, messages) if engines is None else tuple(engines)
    return {
        "engines": [_engine(engine) for engine in chosen],
        "gpus": _gpus(),
        "cuda": describe_library(),
        "plugins": [] if host is None else _or_message(host.listing, messages, []),
        "codecs": _codecs(),
        "isa": instruction_set(),
        "messages": messages,
    }


def rows(findings: DoctorJson) -> list[dict[str, object]]:
    """Return one table of everything: kind, name, state, version, why."""
    table: list[dict[str, object]] = [_row("processor", findings["isa"], "ok")]
    for engine in findings["engines"]:
        state = "runs" if engine["can_run"] else "builds" if engine["can_build"] else ""
        state = state or ("installed" if engine["available"] else "missing")
        table.append(_row("engine", engine["name"], state, engine["version"], engine["why"]))
    table.extend(
        _row("gpu", gpu["name"], "ok", f"driver {gpu['driver_version']}") for gpu in findings["gpus"]
    )
    if not findings["gpus"]:
        table.append(
            _row(
                "gpu",
                "-",
                "none",
                "",
                "nvidia-smi finds no GPU; build bundles here, run avq compile on the machine with the GPU",
            )
        )
    cuda = findings["cuda"]
    state = "ok" if cuda["name"] else "missing"
    table.append(_row("gpu", f"memory: {cuda['name'] or '-'}", state, cuda["version"], cuda["why"]))
    table.extend(
        _row("codec", codec["name"], "ok" if codec["works"] else "missing", "", codec["why"])
        for codec in findings["codecs"]
    )
    table.extend(
        _row("plugin", plugin["name"], "ok", plugin["version"], ", ".join(plugin["brings"]))
        for plugin in findings["plugins"]
    )
    table.extend(_row("problem", "plugins", "broken", "", text) for text in findings["messages"])
    return table


def _row(kind: str, name: str, state: str, version: str = "", why: str = "") -> dict[str, object]:
    return {"kind": kind, "name": name, "state": state, "version": version, "why": why}


def _engines(host: PluginHost | None, messages: list[str]) -> tuple[Engine, ...]:
    builtin = builtin_engines()
    names = {engine.name for engine in builtin}
    plugins: tuple[Engine, ...] = () if host is None else _or_message(host.engines, messages, ())
    return (*builtin, *(engine for engine in plugins if engine.name not in names))


def _or_message(load: Callable[[], _T], messages: list[str], default: _T) -> _T:
    """Call ``load``; on an AvqError append it to ``messages`` and return ``default``."""
    try:
        return load()
    except AvqError as error:
        messages.append(" ".join(str(error).splitlines()))
        return default


def _engine(engine: Engine) -> EngineJson:
    status = _status(engine)
    return {
        "name": status.name,
        "available": status.available,
        "version": status.version,
        "can_build": status.can_build,
        "can_run": status.can_run,
        "why": status.why,
    }


def _status(engine: Engine) -> EngineStatus:
    try:
        return engine.status()
    except Exception as error:  # a plugin's engine may raise anything
        why = f"status() failed: {type(error).__name__}: {error}"
        return EngineStatus(engine.name, False, "", False, False, why)


def _gpus() -> list[dict[str, str]]:
    """List NVIDIA GPUs as the driver reports them; [] without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    keys = [key.replace(".", "_") for key in _GPU_FIELDS]
    values = ([part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line)
    return [dict(zip(keys, line, strict=False)) for line in values]


def _codecs() -> list[CodecJson]:
    """Write and read back a few frames with each codec."""
    with tempfile.TemporaryDirectory(prefix="avq-doctor-") as folder:
        return [
            _codec("VP8 in WebM (reports)", Path(folder) / "probe.webm", "VP80"),
            _codec("MPEG-4 in MP4 (sources)", Path(folder) / "probe.mp4", "mp4v"),
        ]


def _codec(name: str, path: Path, fourcc: str) -> CodecJson:
    try:
        with suppress_output(STANDARD_ERROR):  # the video library writes to standard error itself
            why = _write_and_read(path, fourcc)
    except Exception as error:  # OpenCV builds differ in what they raise
        why = f"{type(error).__name__}: {error}"
    return {"name": name, "works": not why, "why": why}


def _write_and_read(path: Path, fourcc: str) -> str:
    """Return '' if frames survive the round trip, else what is missing."""
    import cv2

    code = cv2.VideoWriter.fourcc(fourcc[0], fourcc[1], fourcc[2], fourcc[3])
    writer = cv2.VideoWriter(str(path), code, 25.0, (64, 48))
    if not writer.isOpened():
        return f"OpenCV cannot write {fourcc}; install opencv-python-headless with FFmpeg"
    for step in range(5):
        writer.write(np.full((48, 64, 3), 40 * step, np.uint8))
    writer.release()
    reader = cv2.VideoCapture(str(path))
    ok, frame = reader.read()
    reader.release()
    return "" if ok and frame.shape == (48, 64, 3) else f"OpenCV cannot read {path.suffix} back"
