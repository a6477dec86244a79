"""The engine of a GPU that is not here, rehearsed: the unoptimised reference runs the very bytes it will be given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from avq.builder.pending.older_runtime import in_opset_21
from avq.errors import MachineError
from avq.hookspecs import Engine, Session
from avq.types import CompiledEngine, EnginePrecision, EngineStatus, SessionOptions


@runtime_checkable
class Compiler(Protocol):
    """What an engine has whose models are compiled ahead, for GPUs by name."""

    @property
    def name(self) -> str: ...

    def status(self) -> EngineStatus: ...

    def chosen_architectures(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """``asked`` in the builder's spelling, its usual ones when empty; RequestError for unknown ones."""
        ...

    def compile(self, model: bytes, architecture: str) -> CompiledEngine:
        """Raises ModelError, naming the node, when the target cannot read or build the model."""
        ...


@dataclass(frozen=True)
class StandIn:
    """Takes the target's place in every check of numbers; its times mean nothing and nobody asks for them."""

    compiler: Compiler
    reference: Engine

    float_precisions: tuple[EnginePrecision, ...] = ("f32",)

    @property
    def name(self) -> str:
        return self.compiler.name

    def status(self) -> EngineStatus:
        return self.compiler.status()

    def encodings(self) -> tuple[str, ...]:
        return ("s8",)

    def open(self, model: bytes | Path, options: SessionOptions) -> Session:
        """The very bytes; the same arithmetic in older operators where the reference has no kernel for them."""
        plain = replace(options, precision="f32", optimise=False)
        try:
            return self.reference.open(model, plain)
        except MachineError:
            older = in_opset_21(model if isinstance(model, bytes) else model.read_bytes())
            if older is None:
                raise
            return self.reference.open(older, plain)


def pending_compiler(target: str, engines: Iterable[Engine]) -> Compiler | None:
    """The engine of ``target`` when its models are compiled, here or on the vehicle; None for every other engine.

    Also where there is a card: what a bundle holds, and how it is proven and timed, is then the same everywhere.
    """
    for engine in engines:
        if engine.name == target and isinstance(engine, Compiler):
            return engine if engine.status().can_build or compiles_on_target(engine) else None
    return None


def compiles_on_target(engine: object) -> bool:
    """Whether its engines are built by ``avq compile`` on the machine that runs them, and nowhere else."""
    return bool(getattr(engine, "compiles_on_target", False))
