"""What happens while a side file is taken over: names are looked up, and what does not fit is collected."""

from __future__ import annotations

import difflib
from collections import defaultdict
from functools import cached_property

from avq.builder.lift.findings import finding
from avq.builder.sidefiles.grids import UnfitError
from avq.builder.sidefiles.match import Names
from avq.types import Finding, GraphView


class Taking:
    """One file over one graph.

    Attributes:
        graph: the float graph.
        names: its tensors by the names of the exported model.
        matched: how many entries found their tensor.
    """

    def __init__(self, graph: GraphView, where: str) -> None:
        self.graph, self.names, self.matched = graph, Names(graph), 0
        self._where = where
        self._places: dict[str, list[str]] = defaultdict(list)
        self._unknown: list[str] = []

    def find(self, name: str, line: int) -> str | None:
        """The tensor that ``name`` means; a name without one is noted."""
        tensor = self.names.find(name)
        if tensor is None:
            self._unknown.append(name)
            self.note("AVQ-Q50", name, line)
        else:
            self.matched += 1
        return tensor

    def note(self, code: str, name: str, line: int, seen: str = "") -> None:
        place = f"{name} ({self._where}:{line})" if line else name
        self._places[code].append(f"{place} {seen}".rstrip())

    def unfit(self, reason: UnfitError, name: str, line: int) -> None:
        self.note(reason.code, name, line, reason.seen)

    def findings(self) -> tuple[Finding, ...]:
        """By code; names that nothing has are grave when no name fits at all."""
        said = []
        for code, places in sorted(self._places.items()):
            if code == "AVQ-Q50":
                severity = "warning" if self.matched else "error"
                said.append(finding(code, places, severity=severity, fix=self._nearest))
            else:
                said.append(finding(code, places))
        return tuple(said)

    @cached_property
    def _nearest(self) -> str | None:
        known = [*self.graph.tensors, *self.graph.constants]
        close = difflib.get_close_matches(self._unknown[0], known, n=1, cutoff=0.6)
        hint = f"; the model has '{close[0]}'" if close else ""
        return f"take the file that was written beside this very model, or rename the entries{hint}"
