"""The ONNX parser of TensorRT for RTX, as a witness."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from avq.engines.tensorrt_build import no_collection


@dataclass(frozen=True)
class Answer:
    """What the parser said: "rejects", "warns" or "accepts", and its words."""

    verdict: str
    words: str = ""


@dataclass
class Parser:
    """One builder, one network for each question."""

    trt: Any
    log: Any
    builder: Any

    @no_collection()
    def ask(self, model: bytes) -> Answer:
        network, parser = self._parsed(model)
        del network
        if parser.num_errors:
            return Answer("rejects", parser.get_error(0).desc())
        said = [text for text in self.log.said if "UINT8" in text or "type int32" in text]
        return Answer("warns", said[0]) if said else Answer("accepts")

    @no_collection()
    def builds(self, model: bytes, architecture: str = "sm89") -> str:
        """Empty when an engine comes out, else the builder's words."""
        network, parser = self._parsed(model)
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, architecture.upper()), 0)
        built = self.builder.build_serialized_network(network, config)
        del parser
        return "" if built is not None else " ".join(self.log.said[-1:]) or "no engine"

    def reads(self, op_type: str) -> bool:
        network = self.builder.create_network(0)
        return bool(self.trt.OnnxParser(network, self.log).supports_operator(op_type))

    def _parsed(self, model: bytes) -> tuple[Any, Any]:
        self.log.said.clear()
        network = self.builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.log)
        assert parser.parse(model) == (parser.num_errors == 0)
        return network, parser


@cache
def real_parser() -> Parser:
    """The installed parser; skips the test, with the reason, where there is none."""
    try:
        import tensorrt_rtx as trt
    except Exception as error:  # a half-installed library raises anything
        pytest.skip(f"no TensorRT for RTX to ask (pip install tensorrt-rtx-cu12): {error}")

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                self.said.append(message)

    log = Log()
    with no_collection():
        return Parser(trt, log, trt.Builder(log))


def survives(model: bytes) -> bool:
    """Whether a process of its own gets through building the model; False when a signal ends it."""
    told = "import sys; from tests.builder.lint.real_parser import real_parser as parser\n"
    told += "assert not parser().builds(sys.stdin.buffer.read())"
    root, command = Path(__file__).parents[3], [sys.executable, "-c", told]
    done = subprocess.run(command, input=model, cwd=root, capture_output=True, timeout=600, check=False)
    assert done.returncode <= 0, done.stderr.decode()
    return done.returncode == 0
