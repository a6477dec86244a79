"""Judge every frame of every log, rank them over all, and write the chosen ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.errors import RequestError
from avq.parallel import Fleet
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.replay.frames import FrameKey
from avq.replay.log import pictures_of
from avq.replay.mine.choose import SIGNALS, Ranked, choose, rank
from avq.replay.mine.judge import Judged, MineJob, judge_log
from avq.replay.mine.write import write_set
from avq.replay.open_log import open_log
from avq.types import U8

GAP_S = 0.5
_SHOWN = 20


@dataclass(frozen=True)
class Mined:
    """The answer of ``avq replay --mine``.

    Attributes:
        judged: per log, in the order they were named.
        chosen: frames of the set, strangest first.
        added: how many of them were new to the folder.
    """

    judged: tuple[Judged, ...]
    chosen: tuple[Ranked, ...]
    folder: Path
    added: int

    answer_is_yes = True

    @property
    def frames(self) -> int:
        return sum(len(one.frames) for one in self.judged)

    def summary(self) -> dict[str, Any]:
        """The keys of ``avq replay --json``, and what was mined."""
        digests = [one.sha256 for one in self.judged]
        together = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return {
            "frames": self.frames,
            "identical": None,
            "differences": [],
            "sha256": digests[0] if len(digests) == 1 else together,
            "seconds": sum(one.seconds for one in self.judged),
            "mined": [self._told(row) for row in self.chosen],
            "added": self.added,
            "signals": sorted(
                {name for one in self.judged for frame in one.frames for name in frame.signals}
            ),
            "set": str(self.folder),
        }

    def _told(self, row: Ranked) -> dict[str, Any]:
        camera, seq = row.frame.key
        return {
            "log": row.frame.log,
            "camera": camera,
            "frame": seq,
            "score": round(row.score, 4),
            "why": row.why,
            **{name: round(row.frame.signals[name], 4) for name in SIGNALS if name in row.frame.signals},
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        shown = [{**self._told(row), "log": row.frame.log.rsplit("/", 1)[-1]} for row in self.chosen[:_SHOWN]]
        return [(f"Frames that speak most, {len(self.chosen)} of {self.frames}", shown)]

    def closing(self) -> list[str]:
        why = ", ".join(
            f"{name} {count}" for name, count in Counter(r.why for r in self.chosen).most_common()
        )
        return [
            f"{self.added} new pictures: {self.folder} ({why or 'nothing speaks for any frame'})",
            f"  next: avq build MODEL --data {self.folder} ..., beside the pictures of before",
        ]


def mine(
    *,
    logs: Sequence[str],
    bundle: Path,
    other: Path | None,
    folder: Path,
    count: int,
    licence: str,
    frames: int | None,
    fleet: Fleet,
    host: PluginHost,
    report: Reporter,
) -> Mined:
    """Rank the frames of all logs together and add the first ``count`` to the set in ``folder``.

    Args:
        other: the bundle to compare with; None takes the float network of ``bundle`` itself.

    Raises:
        RequestError: nothing can speak for a frame. DataError: a log or the folder cannot be used.
    """
    jobs = [MineJob(log, bundle.resolve(), other and other.resolve(), frames) for log in logs]
    judged = tuple(report.track(fleet.map(judge_log, jobs), "logs", len(jobs)))
    every = [frame for one in judged for frame in one.frames]
    if not any(frame.signals for frame in every):
        raise RequestError(
            "nothing can tell which frames are strange",
            seen=f"{bundle} is a float bundle without a drift probe, and the logs hold no boxes of another",
            fix="mine with a quantized bundle, or name one to compare with: --baseline BUNDLE",
        )
    chosen = choose(rank(every), count, int(GAP_S * 1e9))
    digests = {job.log: one.log_sha256 for job, one in zip(jobs, judged, strict=True)}
    added = write_set(folder, chosen, _pixels(chosen, host), digests, licence)
    return Mined(judged, tuple(chosen), folder, added)


def _pixels(chosen: Sequence[Ranked], host: PluginHost) -> dict[tuple[str, FrameKey], U8]:
    found: dict[tuple[str, FrameKey], U8] = {}
    for log in dict.fromkeys(row.frame.log for row in chosen):
        wanted = {row.frame.key for row in chosen if row.frame.log == log}
        pictures = pictures_of(open_log(log, host.sources()), wanted)
        found |= {(log, key): pixels for key, pixels in pictures.items()}
    return found
