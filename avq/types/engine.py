"""Options of an inference session, and reports of engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EnginePrecision = Literal["f32", "bf16", "f16"]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Options for opening a model.

    Attributes:
        threads: compute threads, fixed for the session's life.
        precision: number format of the float parts; quantized parts run as in the model.
        optimise: False turns graph rewrites off: the reference semantics.
        integers: False rounds at the quantizers and computes in float; other rewrites stay. Faster than the
            reference semantics and close to it, but not bit-equal.
    """

    threads: int = 1
    precision: EnginePrecision = "f32"
    optimise: bool = True
    integers: bool = True


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One line of ``avq doctor``.

    Attributes:
        name: the engine.
        available: its library can be imported.
        version: of the library; '' when it is not available.
        can_build: it can compile a model here.
        can_run: it can run a model here.
        why: one line: the reason when it cannot, else details.
    """

    name: str
    available: bool
    version: str
    can_build: bool
    can_run: bool
    why: str


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One layer of a compiled network.

    Attributes:
        name: name in the runtime.
        nodes: names of the model file's nodes in it; empty for layers that the runtime added (reformats).
        ns: median nanoseconds of one inference.
    """

    name: str
    nodes: tuple[str, ...]
    ns: int


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """A model compiled for one GPU architecture.

    Attributes:
        architecture: compute capability, such as "sm89".
        data: the engine file.
        seconds: build time.
        layers: number of layers of the parsed network.
        warnings: messages of the builder.
    """

    architecture: str
    data: bytes
    seconds: float
    layers: int
    warnings: tuple[str, ...] = ()
