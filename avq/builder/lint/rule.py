"""The rule of lint and its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from avq.builder.lint.graph import LintGraph
from avq.types import TARGETS, Finding

TRT = ("tensorrt", "tensorrt-rtx")
CPU = ("cpu", "onnxruntime", "openvino")
ALL = TARGETS

#: A node, or the name of a tensor, and the values seen there.
Hit = tuple["onnx.NodeProto | str", str]
Find = Callable[[LintGraph], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding, with the keys ``avq lint --json`` prints."""

    id: str
    severity: str  # "error" | "warning"
    node: str
    what: str
    seen: str
    fix: str

    def as_finding(self) -> Finding:
        """The finding as the gate reads it: any "error" rejects a bundle."""
        return Finding(self.severity, self.id, f"{self.node}: {self.what}", self.seen, self.fix)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its message, its targets and its fix.

    Attributes:
        id: such as "AVQ-L07".
        severity: "error" rejects a bundle; "warning" costs speed or accuracy.
        targets: those that it applies to.
        what, fix: texts of its findings.
        find: yields the places that break the rule.
    """

    id: str
    severity: str
    targets: tuple[str, ...]
    what: str
    fix: str
    find: Find

    def findings(self, graph: LintGraph) -> Iterator[LintFinding]:
        """Findings of the rule in ``graph``."""
        for place, seen in self.find(graph):
            yield LintFinding(self.id, self.severity, _name(place), self.what, seen, self.fix)


#: Every rule, in the order of its families; `avq.builder.lint` sorts them by id.
REGISTERED: list[Rule] = []


def error(number: int, targets: tuple[str, ...], what: str, fix: str) -> Callable[[Find], Find]:
    """Register a rule whose findings reject a bundle."""
    return _registering(number, "error", targets, what, fix)


def warning(number: int, targets: tuple[str, ...], what: str, fix: str) -> Callable[[Find], Find]:
    """Register a rule whose findings cost speed or accuracy, or may be intended."""
    return _registering(number, "warning", targets, what, fix)


def _registering(
    number: int, severity: str, targets: tuple[str, ...], what: str, fix: str
) -> Callable[[Find], Find]:
    def add(find: Find) -> Find:
        REGISTERED.append(Rule(f"AVQ-L{number:02d}", severity, targets, what, fix, find))
        return find

    return add


def _name(place: onnx.NodeProto | str) -> str:
    if isinstance(place, str):
        return place
    return place.name or next((name for name in place.output if name), place.op_type)
