"""What can be built and run on this machine, and why not. Looks, never raises, changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from avq.engines import builtin_engines
from avq.engines.cpu import instruction_set
from avq.engines.cuda import describe_library
from avq.errors import AvqError
from avq.hookspecs import Engine
from avq.plugins import PluginHost
from avq.process import STANDARD_ERROR, suppress_output
from avq.types import EngineStatus

_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def examine(engines: Sequence[Engine] | None = None, host: PluginHost | None = None) -> dict[str, Any]:
    """The object ``avq doctor --json`` prints.

    Args:
        engines: runtimes to look at; the built-in ones and those of plugins when None.
        host: loaded plugins; loaded here when None, and a failure becomes a message.

    Returns:
        engines [{name, available, version, can_build, can_run, why}], gpus [{name, ...}],
        cuda {name, version, why} (the library for GPU memory), plugins [...],
        codecs [{name, works, why}], isa (str), messages [str].
    """
    messages: list[str] = []
    if host is None:
        host = _safely(PluginHost, messages, None)
    chosen = _engines(host, messages) if engines is None else tuple(engines)
    return {
        "engines": [asdict(status) for status in _statuses(chosen)],
        "gpus": _gpus(),
        "cuda": describe_library(),
        "plugins": [] if host is None else _safely(host.listing, messages, []),
        "codecs": _codecs(),
        "isa": instruction_set(),
        "messages": messages,
    }


def rows(findings: Mapping[str, Any]) -> list[dict[str, object]]:
    """The same as one table: kind, name, state, version, why."""
    table: list[dict[str, object]] = [_row("processor", findings["isa"], "ok")]
    for engine in findings["engines"]:
        state = "runs" if engine["can_run"] else "builds" if engine["can_build"] else ""
        state = state or ("installed" if engine["available"] else "missing")
        table.append(_row("engine", engine["name"], state, engine["version"], engine["why"]))
    for gpu in findings["gpus"]:
        table.append(_row("gpu", gpu["name"], "ok", f"driver {gpu['driver_version']}"))
    if not findings["gpus"]:
        table.append(
            _row(
                "gpu",
                "-",
                "none",
                "",
                "nvidia-smi finds no GPU; bundles for one are built here and compiled beside it: avq compile",
            )
        )
    cuda = findings["cuda"]
    state = "ok" if cuda["name"] else "missing"
    table.append(_row("gpu", f"memory: {cuda['name'] or '-'}", state, cuda["version"], cuda["why"]))
    for codec in findings["codecs"]:
        table.append(_row("codec", codec["name"], "ok" if codec["works"] else "missing", "", codec["why"]))
    for plugin in findings["plugins"]:
        table.append(_row("plugin", plugin["name"], "ok", plugin["version"], ", ".join(plugin["brings"])))
    table.extend(_row("problem", "plugins", "broken", "", text) for text in findings["messages"])
    return table


def _row(kind: str, name: str, state: str, version: str = "", why: str = "") -> dict[str, object]:
    return {"kind": kind, "name": name, "state": state, "version": version, "why": why}


def _engines(host: PluginHost | None, messages: list[str]) -> tuple[Engine, ...]:
    ours = builtin_engines()
    known = {engine.name for engine in ours}
    brought: tuple[Engine, ...] = () if host is None else _safely(host.engines, messages, ())
    return (*ours, *(engine for engine in brought if engine.name not in known))


def _safely(ask: Any, messages: list[str], otherwise: Any) -> Any:
    try:
        return ask()
    except AvqError as error:
        messages.append(" ".join(str(error).splitlines()))
        return otherwise


def _statuses(engines: Sequence[Engine]) -> list[EngineStatus]:
    return [_status(engine) for engine in engines]


def _status(engine: Engine) -> EngineStatus:
    try:
        return engine.status()
    except Exception as error:  # an engine of a plugin that breaks its promise
        why = f"its status failed: {type(error).__name__}: {error}"
        return EngineStatus(engine.name, False, "", False, False, why)


def _gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as the driver lists them; none without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    ask = [tool, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    keys = [key.replace(".", "_") for key in _GPU_FIELDS]
    values = ([part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line)
    return [dict(zip(keys, line, strict=False)) for line in values]


def _codecs() -> list[dict[str, object]]:
    """Whether video files can be written and read back, tried on a few frames."""
    with tempfile.TemporaryDirectory(prefix="avq-doctor-") as folder:
        return [
            _codec("VP8 in WebM (reports)", Path(folder) / "probe.webm", "VP80"),
            _codec("MPEG-4 in MP4 (sources)", Path(folder) / "probe.mp4", "mp4v"),
        ]


def _codec(name: str, path: Path, fourcc: str) -> dict[str, object]:
    try:
        with suppress_output(STANDARD_ERROR):  # the video library talks past every Python setting
            why = _write_and_read(path, fourcc)
    except Exception as error:  # OpenCV builds differ in what they raise
        why = f"{type(error).__name__}: {error}"
    return {"name": name, "works": not why, "why": why}


def _write_and_read(path: Path, fourcc: str) -> str:
    """'' when frames survive the round trip, else what is missing."""
    import cv2

    code = cv2.VideoWriter.fourcc(fourcc[0], fourcc[1], fourcc[2], fourcc[3])
    writer = cv2.VideoWriter(str(path), code, 25.0, (64, 48))
    if not writer.isOpened():
        return f"OpenCV cannot write {fourcc}; install opencv-python-headless with FFmpeg"
    for step in range(5):
        writer.write(np.full((48, 64, 3), 40 * step, np.uint8))
    writer.release()
    reader = cv2.VideoCapture(str(path))
    found, frame = reader.read()
    reader.release()
    return "" if found and frame.shape == (48, 64, 3) else f"OpenCV cannot read {path.suffix} back"
