"""The ONNX parser of TensorRT for RTX, as a witness.

It answers from a process of its own, one for all tests of this process: a crash is a failed test and not the end of
the run, the next question starts another witness, and what the tests keep in memory costs it nothing.
"""

from __future__ import annotations

import atexit
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Timer
from typing import IO, Any

import pytest

from avq.engines.tensorrt_build import no_collection

ROOT = Path(__file__).parents[3]
PATIENCE_S = 600.0
#: The builder takes and returns hundreds of megabytes for each network. Memory that stays with the process saves
#: three quarters of the time; glibc reads these, others pass over them.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
}


@dataclass(frozen=True)
class Answer:
    """What the parser log_lines: "rejects", "warns" or "accepts", and its words."""

    verdict: str
    words: str = ""


class DiedError(AssertionError):
    """The process of the parser ended instead of answering; ``code`` as subprocess has it."""

    def __init__(self, code: int, words: str) -> None:
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
        super().__init__(f"the parser's process died ({how}): {words}")
        self.code = code


@dataclass
class Parser:
    """``log_lines``: errors and warnings of the last question."""

    process: subprocess.Popen[bytes] | None = None
    errors: IO[bytes] | None = None
    log_lines: list[str] = field(default_factory=list)

    def ask(self, model: bytes) -> Answer:
        return self._answer("ask", model)

    def builds(self, model: bytes, architecture: str = "sm89") -> str:
        """Empty when an engine comes out, else the builder's words."""
        return self._answer("builds", model, architecture)

    def reads(self, op_type: str) -> bool:
        return self._answer("reads", op_type)

    def start(self) -> str:
        """Why there is no parser here, or ''."""
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env={**os.environ, **KEEP_MEMORY},
        )
        return str(self._received())

    def close(self) -> None:
        """End the process, as it does by itself at the end of standard input."""
        if self.process is not None:
            self._ended()

    def _ended(self) -> str:
        """Wait for the end of the process; its last words."""
        assert self.process is not None and self.errors is not None
        self.process.communicate()
        self.process = None
        with self.errors as errors:
            errors.seek(0)
            return errors.read()[-2000:].decode(errors="replace")

    def _answer(self, question: str, *arguments: object) -> Any:
        if self.process is None:
            assert self.start() == ""
        value, self.log_lines = self._received(pickle.dumps((question, arguments)))
        return value

    def _received(self, question: bytes = b"") -> Any:
        process, errors = self.process, self.errors
        assert process and process.stdin and process.stdout and errors
        late, started_s = Timer(PATIENCE_S, process.kill), time.monotonic()
        late.start()
        try:
            process.stdin.write(question)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError):
            hung = time.monotonic() - started_s >= PATIENCE_S
            words = self._ended()
            if hung:
                raise TimeoutError(f"no answer after {PATIENCE_S:.0f} s: {words}") from None
            raise DiedError(process.returncode, words) from None
        finally:
            late.cancel()


@cache
def _parser() -> tuple[Parser, str]:
    parser = Parser()
    missing = parser.start()
    atexit.register(parser.close)
    return parser, missing


def real_parser() -> Parser:
    """The installed parser; skips the test, with the reason, where there is none."""
    parser, missing = _parser()
    if missing:
        pytest.skip(f"no TensorRT for RTX to ask (pip install tensorrt-rtx-cu12): {missing}")
    return parser


def survives(model: bytes) -> bool:
    """Whether the builder gets through the model; False when a signal ends its process."""
    try:
        assert not real_parser().builds(model)
    except DiedError as error:
        if error.code < 0:
            return False
        raise
    return True


# In the process of the parser


@dataclass
class Library:
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
        log_lines = [text for text in self.log.log_lines if "UINT8" in text or "type int32" in text]
        return Answer("warns", log_lines[0]) if log_lines else Answer("accepts")

    @no_collection()
    def builds(self, model: bytes, architecture: str) -> str:
        network, parser = self._parsed(model)
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(self.trt.ComputeCapability, architecture.upper()), 0)
        built = self.builder.build_serialized_network(network, config)
        del parser
        return "" if built is not None else " ".join(self.log.log_lines[-1:]) or "no engine"

    @no_collection()
    def reads(self, op_type: str) -> bool:
        network = self.builder.create_network(0)
        return bool(self.trt.OnnxParser(network, self.log).supports_operator(op_type))

    def _parsed(self, model: bytes) -> tuple[Any, Any]:
        self.log.log_lines.clear()
        network = self.builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.log)
        assert parser.parse(model) == (parser.num_errors == 0)
        return network, parser


def _library() -> Library:
    import tensorrt_rtx as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.log_lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                self.log_lines.append(message)

    log = Log()
    with no_collection():
        return Library(trt, log, trt.Builder(log))


def serve() -> None:
    """Answer questions from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints is no answer
    try:
        library = _library()
    except Exception as error:  # a half-installed library raises anything
        pickle.dump(f"{type(error).__name__}: {error}", answers)
        answers.flush()
        return
    pickle.dump("", answers)
    answers.flush()
    gc.freeze()  # each question collects first: what was imported is not gone through each time
    while True:
        try:
            question, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump((getattr(library, question)(*arguments), list(library.log.log_lines)), answers)
        answers.flush()
