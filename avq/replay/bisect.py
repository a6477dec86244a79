"""``avq bisect``: which groups of a plan cause a difference on a log, and where it shows most."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avq.builder.plan_mixture import Group, PlanMixer, open_plan_mixer
from avq.errors import MachineError
from avq.plugins import PluginHost
from avq.progress import Reporter, Silent
from avq.replay.differences import FramePair, Tolerances, pair_frames
from avq.replay.outcome import Outcome
from avq.replay.report import write_report
from avq.replay.result import ReplayResult
from avq.replay.run import ReplayRequest, replay
from avq.replay.verdict import judge

# Which of many parts cause something, by halving: the search of ``avq bisect``, pure.

Shows = Callable[[frozenset[int]], bool]


def smallest_cause(candidates: Sequence[int], shows: Shows) -> list[int]:
    """A set of candidates that shows it together, none of which can be left out.

    ``shows`` must be true of all candidates together and false of none; more of them are assumed to show it at
    least as well. One culprit among n costs about log2(n) + 1 questions; every further one that only counts
    together with it costs as many again.
    """
    fixed: frozenset[int] = frozenset()
    end = len(candidates)
    while True:
        end = _last_needed(candidates, end, fixed, shows)
        fixed |= {candidates[end - 1]}
        if end == 1 or shows(fixed):
            return sorted(fixed)
        end -= 1


def _last_needed(candidates: Sequence[int], end: int, fixed: frozenset[int], shows: Shows) -> int:
    """The shortest beginning, of at most ``end``, that shows it together with ``fixed``."""
    low = 0
    while end - low > 1:
        middle = (low + end) // 2
        if shows(fixed | frozenset(candidates[:middle])):
            end = middle
        else:
            low = middle
    return end


#: A mixture shows the difference when it does this much of the damage of the whole bad plan.
SHARE = 0.5
_REFERENCE = "onnxruntime"
#: Independent causes that are looked for, strongest beginnings of the graph first.
_MOST = 4


@dataclass(frozen=True)
class Cause:
    """Groups that show the difference together, none of which can be left out; ``damage`` is theirs alone."""

    groups: tuple[Group, ...]
    damage: float


@dataclass(frozen=True)
class Bisection:
    """The answer.

    Attributes:
        damage: of the bad plan against the good one; see ``damage_of``.
        rest: damage of the bad plan without the causes' groups.
        replays: of the log, both ends included.
        worst: the frame where the causes differ most from the good plan; None without a difference.
    """

    mixer: PlanMixer
    log: str
    damage: float
    causes: tuple[Cause, ...]
    rest: float
    replays: int
    worst: FramePair | None
    seconds: float
    files: Mapping[str, Path]

    @property
    def passed(self) -> bool:
        """A difference was explained, or there was none to explain."""
        return not self.damage or bool(self.causes)

    @property
    def headline(self) -> str:
        if not self.damage:
            return "the two plans answer alike on this log"
        named = "; ".join(" with ".join(g.name for g in cause.groups) for cause in self.causes)
        share = sum(cause.damage for cause in self.causes) / self.damage
        return f"caused by {named}: {share:.0%} of the difference, found in {self.replays} replays"

    def summary(self) -> dict[str, Any]:
        """The keys of ``avq bisect --json``."""
        return {
            "log": self.log,
            "good": str(self.mixer.good.path),
            "bad": str(self.mixer.bad.path),
            "groups": len(self.mixer.groups),
            "differing": len(self.mixer.differing),
            "replays": self.replays,
            "damage": self.damage,
            "rest": self.rest,
            "culprits": [
                {
                    "group": group.name,
                    "nodes": list(group.nodes),
                    "differences": _told(group),
                    "damage": c.damage,
                }
                for c in self.causes
                for group in c.groups
            ],
            "causes": [{"groups": [g.name for g in c.groups], "damage": c.damage} for c in self.causes],
            "frame": None if self.worst is None else _frame(self.worst),
            "headline": self.headline,
            "seconds": self.seconds,
            **({"report": {kind: str(path) for kind, path in self.files.items()}} if self.files else {}),
        }

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        rows: list[dict[str, object]] = [
            {"group": group.name, **row} for c in self.causes for group in c.groups for row in _told(group)
        ]
        books = {
            "groups": len(self.mixer.groups),
            "differing": len(self.mixer.differing),
            "replays": self.replays,
            "damage": round(self.damage, 4),
            "without the causes": round(self.rest, 4),
        }
        found: list[tuple[str, Sequence[Mapping[str, object]]]] = [("Bisected", [books])]
        if rows:
            found.append(("What the causes say differently", rows))
        if self.worst is not None:
            found.append(("The frame that shows it most", [_frame(self.worst)]))
        return found

    def footer(self) -> list[str]:
        return [*(f"{kind}: {path}" for kind, path in self.files.items()), self.headline]


def _told(group: Group) -> list[dict[str, str]]:
    return [{"where": d.where, "field": d.field, "good": d.a, "bad": d.b} for d in group.differences]


def _frame(pair: FramePair) -> dict[str, Any]:
    return {
        "camera": pair.key[0],
        "frame": pair.key[1],
        "vanished": len(pair.vanished),
        "appeared": len(pair.appeared),
        "matched": len(pair.matches),
        "badness": round(pair.badness, 4),
    }


def damage_of(good: ReplayResult, other: ReplayResult) -> float:
    """Per frame: scores of boxes that came or went, class flips, shifts of score and place; 0 for the same bits."""
    pairs = pair_frames(good.detections, other.detections)
    return sum(pair.badness for pair in pairs) / len(pairs)


def bisect(
    *,
    log: str,
    good: Path,
    bad: Path,
    frames: int | None,
    report_folder: Path | None,
    host: PluginHost,
    report: Reporter,
) -> Bisection:
    """Replay mixtures of the two plans, and halve until the groups that cause the difference are left.

    Raises:
        RequestError: the bundles are not of one network, or cannot be taken apart.
        DataError: the log cannot be read. BundleError: a bundle is damaged.
        MachineError: onnxruntime or the bundles' engine is missing.
    """
    began_s = time.monotonic()
    mixer = open_plan_mixer(good, bad, _reference(host))
    with tempfile.TemporaryDirectory() as folder:
        tried = _Mixtures(mixer, log, frames, Path(folder), host, report)
        everything = frozenset(range(len(mixer.differing)))
        total = tried.damage(everything) if everything else 0.0
        causes, left = _causes(tried, everything, total) if total else ([], everything)
        blamed = frozenset(everything - left)
        rest = tried.damage(left) if total else 0.0
        worst, files = (None, {}) if not total else _shown(tried, blamed or everything, report_folder, host)
        groups = mixer.differing
        return Bisection(
            mixer=mixer,
            log=log,
            damage=total,
            causes=tuple(Cause(tuple(groups[i] for i in c), tried.damage(frozenset(c))) for c in causes),
            rest=rest,
            replays=tried.replays,
            worst=worst,
            seconds=round(time.monotonic() - began_s, 3),
            files=files,
        )


def _causes(
    tried: _Mixtures, everything: frozenset[int], total: float
) -> tuple[list[list[int]], frozenset[int]]:
    """Causes that each show it, until what is left does not; and what is left."""

    def shows(taken: frozenset[int]) -> bool:
        return bool(taken) and tried.damage(taken) >= SHARE * total

    causes: list[list[int]] = []
    left = everything
    while left and len(causes) < _MOST and shows(left):
        causes.append(smallest_cause(sorted(left), shows))
        left -= frozenset(causes[-1])
    return causes, left


class _Mixtures:
    """Replays of mixtures, each once."""

    def __init__(
        self,
        mixer: PlanMixer,
        log: str,
        frames: int | None,
        folder: Path,
        host: PluginHost,
        report: Reporter,
    ) -> None:
        self._mixer, self._log, self._frames = mixer, log, frames
        self._folder, self._host, self._report = folder, host, report
        self._results: dict[frozenset[int], ReplayResult] = {}

    @property
    def replays(self) -> int:
        return len(self._results)

    def damage(self, taken: frozenset[int]) -> float:
        if not taken:
            return 0.0
        new = taken not in self._results
        damage = damage_of(self.result(frozenset()), self.result(taken))
        if new:
            names = ", ".join(g.name for g in self._named(taken)[:3])
            self._report.message(
                f"replay {self.replays}: {len(taken)} of {len(self._mixer.differing)} groups from the bad plan "
                f"({names}{', ...' if len(taken) > 3 else ''}): damage {damage:.4f}"
            )
        return damage

    def result(self, taken: frozenset[int]) -> ReplayResult:
        if taken not in self._results:
            folder = self._folder / f"mixture-{len(self._results)}"
            bundle = self._mixer.write(folder, [group.name for group in self._named(taken)])
            request = ReplayRequest(self._log, bundle, policy="every", frames=self._frames)
            self._results[taken] = replay(request, host=self._host, report=Silent())
        return self._results[taken]

    def _named(self, taken: frozenset[int]) -> list[Group]:
        return [self._mixer.differing[index] for index in sorted(taken)]


def _shown(
    tried: _Mixtures, blamed: frozenset[int], folder: Path | None, host: PluginHost
) -> tuple[FramePair | None, Mapping[str, Path]]:
    """The worst frame, and with a folder the report of the causes alone against the good plan."""
    good, mixed = tried.result(frozenset()), tried.result(blamed)
    verdict = judge(good, mixed, Tolerances(), "exact")
    outcome = Outcome(mixed, good, "the good plan", verdict)
    worst = outcome.worst_pairs()
    files = {} if folder is None else write_report(outcome, folder, host)
    return (worst[0] if worst else None), files


def _reference(host: PluginHost) -> Any:
    engines = host.running_engines()
    if _REFERENCE not in engines:
        raise MachineError(
            "taking bundles apart needs onnxruntime",
            seen="not installed here",
            fix='pip install "avq[build]"',
        )
    return engines[_REFERENCE]
