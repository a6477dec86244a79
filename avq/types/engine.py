"""How an inference session is asked for, and what an engine says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EnginePrecision = Literal["f32", "bf16", "f16"]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How to open a model.

    Attributes:
        threads: compute threads, fixed for the session's life.
        precision: what the float parts run in; quantized parts run as the model says.
        optimise: False turns graph rewrites off: the reference semantics.
        integers: False rounds where quantizers stand and computes in float; other rewrites stay. Not to the bit
            what the reference gives, in a good deal less time.
    """

    threads: int = 1
    precision: EnginePrecision = "f32"
    optimise: bool = True
    integers: bool = True


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One line of ``avq doctor``."""

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
        name: as the runtime calls it.
        nodes: names of the model file's nodes in it; empty for what the runtime added (format changes).
        ns: median nanoseconds of one inference.
    """

    name: str
    nodes: tuple[str, ...]
    ns: int


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """What a builder made of a model for one GPU architecture.

    Attributes:
        architecture: compute capability, such as "sm89".
        data: the engine file.
        seconds: it took to build.
        layers: of the parsed network.
        warnings: what the builder remarked.
    """

    architecture: str
    data: bytes
    seconds: float
    layers: int
    warnings: tuple[str, ...] = ()
