"""Many replays as one answer and one report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avq.atomic_file import write_whole
from avq.render.page import Fact, Headline, Tone, key_figures, page, section, table
from avq.replay.report import COMMENT, PAGE

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Merged:
    """Rows of replays, in the order they were asked for.

    Attributes:
        rows: the keys of ``avq replay --json``, with ``yes`` and ``error``.
        files: of the report, by kind.
    """

    rows: tuple[Row, ...]
    files: Mapping[str, Path] | None = None

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is not None]

    @property
    def changed(self) -> list[Row]:
        return [row for row in self.rows if row["error"] is None and not row["yes"]]

    @property
    def answer_is_yes(self) -> bool:
        return bool(self.rows) and not self.failed and not self.changed

    @property
    def headline(self) -> str:
        said = [f"{len(self.rows)} replays"]
        said += [f"{len(self.changed)} with differences"] if self.changed else ["none with differences"]
        said += [f"{len(self.failed)} failed"] if self.failed else []
        return ", ".join(said)

    def summary(self) -> dict[str, Any]:
        """The keys of ``avq replay --json`` over all, and every replay's own below ``replays``."""
        done = [row for row in self.rows if row["error"] is None]
        compared = [row["identical"] for row in done if row["identical"] is not None]
        return {
            "frames": sum(row["frames"] for row in done),
            "identical": all(compared) and not self.failed if compared else None,
            "differences": [
                {"log": row["log"], "bundle": row["bundle"], **difference}
                for row in done
                for difference in row["differences"]
            ],
            "sha256": _digest(done, "sha256"),
            "decisions_sha256": _digest(done, "decisions_sha256"),
            "seconds": sum(row["seconds"] for row in done),
            "engine_seconds": sum(row["engine_seconds"] for row in done),
            "headline": self.headline,
            "failed": [{"log": row["log"], **row["error"]} for row in self.failed],
            "replays": [dict(row) for row in self.rows],
            **({"report": {kind: str(path) for kind, path in self.files.items()}} if self.files else {}),
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        return [("Replays", self.listing())]

    def listing(self) -> list[dict[str, object]]:
        """One row per replay, what is not fine first."""
        order = sorted(self.rows, key=lambda row: (row["error"] is None, row["yes"]))
        return [
            {
                "log": row["log"].rsplit("/", 1)[-1],
                "bundle": Path(row["bundle_path"]).name,
                "frames": row.get("frames", 0),
                "differences": len(row.get("differences", ())),
                "late": row.get("misses", 0),
                "seconds": round(row.get("seconds", 0.0), 1),
                "answer": row["headline"],
            }
            for row in order
        ]

    def closing(self) -> list[str]:
        return [*(f"{kind}: {path}" for kind, path in (self.files or {}).items()), self.headline]

    def written(self, folder: Path) -> Merged:
        """One page and one comment over all; each replay's own report lies in a folder beside them."""
        files = {"page": folder / PAGE, "comment": folder / COMMENT}
        write_whole(files["page"], self._page())
        write_whole(files["comment"], self._comment())
        return replace(self, files=files)

    def _page(self) -> str:
        tone: Tone = "good" if self.answer_is_yes else "bad"
        reasons = tuple(f"{row['log']}: {row['headline']}" for row in (*self.failed, *self.changed))[:20]
        facts = [
            Fact("replays", str(len(self.rows))),
            Fact("frames", str(self.summary()["frames"])),
            Fact("with differences", str(len(self.changed)), tone="bad" if self.changed else "plain"),
            Fact("failed", str(len(self.failed)), tone="bad" if self.failed else "plain"),
        ]
        sections = [
            section("At a glance", key_figures(facts)),
            section("Every replay", table(self.listing()), lead="What is not fine comes first."),
        ]
        return page("avq replay", Headline(self.headline, tone, reasons), sections)

    def _comment(self) -> str:
        rows = self.listing()
        names = list(rows[0]) if rows else []
        lines = [f"**{self.headline}**", "", _line(names), _line(["---"] * len(names))]
        return "\n".join([*lines, *(_line([str(value) for value in row.values()]) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _digest(rows: Sequence[Row], key: str) -> str:
    """One digest over those of all replays, in order."""
    return hashlib.sha256("\n".join(str(row[key]) for row in rows).encode()).hexdigest()
