"""``avq bisect``: find the groups of a plan that cause a difference on a log, by delta debugging."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

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

#: Whether a set of changes reproduces the difference.
Reproduces = Callable[[frozenset[int]], bool]


def delta_debugging(candidates: Sequence[int], reproduces: Reproduces) -> list[int]:
    """Find a minimal set of candidates that reproduces the difference.

    The result is minimal: no candidate of it can be left out. One cause among n costs about log2(n) + 1 tests; every
    further candidate that only counts together with it costs as many again.

    Args:
        candidates: changes, in order.
        reproduces: true for all candidates, false for none; supersets of a set that reproduces also do.
    """
    fixed: frozenset[int] = frozenset()
    end = len(candidates)
    while True:
        end = _last_needed(candidates, end, fixed, reproduces)
        fixed |= {candidates[end - 1]}
        if end == 1 or reproduces(fixed):
            return sorted(fixed)
        end -= 1


def _last_needed(candidates: Sequence[int], end: int, fixed: frozenset[int], reproduces: Reproduces) -> int:
    """Return the length of the shortest prefix, at most ``end``, that reproduces together with ``fixed``."""
    low = 0
    while end - low > 1:
        middle = (low + end) // 2
        if reproduces(fixed | frozenset(candidates[:middle])):
            end = middle
        else:
            low = middle
    return end


#: A mixed plan reproduces the difference at this share of the damage of the whole bad plan.
SHARE = 0.5
_REFERENCE = "onnxruntime"
#: Largest number of independent causes.
_MAX_CAUSES = 4


@dataclass(frozen=True)
class Cause:
    """A minimal set of groups that reproduces the difference; ``damage`` is that of these groups alone."""

    groups: tuple[Group, ...]
    damage: float


class PlanChange(TypedDict):
    """One setting in the good and in the bad plan."""

    where: str
    field: str
    good: str
    bad: str


class CulpritJson(TypedDict):
    """One group of nodes of a cause, and the damage of that cause."""

    group: str
    nodes: list[str]
    differences: list[PlanChange]
    damage: float


class CauseJson(TypedDict):
    """Groups that reproduce the difference together, and their damage."""

    groups: list[str]
    damage: float


class FrameChange(TypedDict):
    """Counts of the boxes of one frame against the good plan."""

    camera: str
    frame: int
    vanished: int
    appeared: int
    matched: int
    badness: float


class _Bisect(TypedDict):
    log: str
    good: str
    bad: str
    groups: int
    differing: int
    replays: int
    damage: float
    rest: float
    outside: list[str]
    outside_damage: float | None
    culprits: list[CulpritJson]
    causes: list[CauseJson]
    frame: FrameChange | None
    headline: str
    seconds: float


class BisectJson(_Bisect, total=False):
    """Object of ``avq bisect --json``; ``report`` with --report."""

    report: dict[str, str]


@dataclass(frozen=True)
class Bisection:
    """Result of ``avq bisect``.

    Attributes:
        mixer: the two plans, and the groups in which they differ.
        log: path or URI.
        damage: damage of the bad plan against the good one; see ``damage_of``.
        causes: independent causes, in order of discovery.
        rest: damage of the bad plan without the groups of the causes.
        replays: number of replays of the log, both plans included.
        worst: the frame where the causes differ most from the good plan; None without a difference.
        seconds: wall time.
        files: files of the report, by kind.
        outside: what differs between the bundles outside of their plans, such as "preprocess".
        outside_damage: damage of the bad bundle itself against the good one; None where nothing differs outside.
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
    outside: tuple[str, ...] = ()
    outside_damage: float | None = None

    @property
    def passed(self) -> bool:
        """Whether a cause was found in the plans, or there is no difference."""
        return bool(self.causes) if self.damage else not self.outside_damage

    @property
    def headline(self) -> str:
        if not self.damage and self.outside_damage:
            return (
                f"the two plans give the same boxes; the bundles differ outside of the plan, in "
                f"{', '.join(self.outside)}: damage {self.outside_damage:.4f}"
            )
        if not self.damage:
            return "no difference between the two bundles on this log"
        named = "; ".join(" with ".join(g.name for g in cause.groups) for cause in self.causes)
        share = max(0.0, 1.0 - self.rest / self.damage)
        also = (
            f"; outside of the plan the bundles differ in {', '.join(self.outside)}" if self.outside else ""
        )
        return f"caused by {named}: {share:.0%} of the difference, found in {self.replays} replays{also}"

    def summary(self) -> BisectJson:
        """Return the object of ``avq bisect --json``."""
        answer: BisectJson = {
            "log": self.log,
            "good": str(self.mixer.good.path),
            "bad": str(self.mixer.bad.path),
            "groups": len(self.mixer.groups),
            "differing": len(self.mixer.differing),
            "replays": self.replays,
            "damage": self.damage,
            "rest": self.rest,
            "outside": list(self.outside),
            "outside_damage": self.outside_damage,
            "culprits": [
                {
                    "group": group.name,
                    "nodes": list(group.nodes),
                    "differences": _difference_rows(group),
                    "damage": c.damage,
                }
                for c in self.causes
                for group in c.groups
            ],
            "causes": [{"groups": [g.name for g in c.groups], "damage": c.damage} for c in self.causes],
            "frame": None if self.worst is None else _frame(self.worst),
            "headline": self.headline,
            "seconds": self.seconds,
        }
        if self.files:
            answer["report"] = {kind: str(path) for kind, path in self.files.items()}
        return answer

    def tables(self) -> list[tuple[str, Sequence[Mapping[str, object]]]]:
        rows: list[dict[str, object]] = [
            {"group": group.name, **row}
            for c in self.causes
            for group in c.groups
            for row in _difference_rows(group)
        ]
        totals = {
            "groups": len(self.mixer.groups),
            "differing": len(self.mixer.differing),
            "replays": self.replays,
            "damage": round(self.damage, 4),
            "without the causes": round(self.rest, 4),
        }
        tables: list[tuple[str, Sequence[Mapping[str, object]]]] = [("Bisected", [totals])]
        if rows:
            tables.append(("Plan differences of the causes", rows))
        if self.worst is not None:
            tables.append(("Frame with the largest difference", [_frame(self.worst)]))
        return tables

    def footer(self) -> list[str]:
        return [*(f"{kind}: {path}" for kind, path in self.files.items()), self.headline]


def _difference_rows(group: Group) -> list[PlanChange]:
    return [{"where": d.where, "field": d.field, "good": d.a, "bad": d.b} for d in group.differences]


def _frame(pair: FramePair) -> FrameChange:
    return {
        "camera": pair.key[0],
        "frame": pair.key[1],
        "vanished": len(pair.vanished),
        "appeared": len(pair.appeared),
        "matched": len(pair.matches),
        "badness": round(pair.badness, 4),
    }


def damage_of(good: ReplayResult, other: ReplayResult) -> float:
    """Return the mean ``badness`` of the frames: lost and new scores, class flips, shifts; 0 for identical runs."""
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
    """Replay mixtures of two plans and find the groups that cause the difference.

    Args:
        log: path or URI.
        good: bundle with the good plan.
        bad: bundle with the bad plan.
        frames: stop each replay after so many frames; None replays the whole log.
        report_folder: folder of a report on the causes; None writes none.
        host: plugins.
        report: progress.

    Raises:
        RequestError: the bundles are of different networks, or their plans cannot be mixed.
        DataError: the log cannot be read.
        BundleError: a bundle is damaged.
        MachineError: onnxruntime or the engine of the bundles is missing.
    """
    start_s = time.monotonic()
    mixer = open_plan_mixer(good, bad, _reference(host))
    with tempfile.TemporaryDirectory() as folder:
        mixtures = _Mixtures(mixer, log, frames, Path(folder), host, report)
        all_groups = frozenset(range(len(mixer.differing)))
        total = mixtures.damage(all_groups) if all_groups else 0.0
        causes, left = _causes(mixtures, all_groups, total) if total else ([], all_groups)
        blamed = frozenset(all_groups - left)
        rest = mixtures.damage(left) if total else 0.0
        worst, files = (
            (None, {}) if not total else _worst_frame(mixtures, blamed or all_groups, report_folder, host)
        )
        groups = mixer.differing
        outside = mixer.outside
        return Bisection(
            mixer=mixer,
            log=log,
            damage=total,
            causes=tuple(Cause(tuple(groups[i] for i in c), mixtures.damage(frozenset(c))) for c in causes),
            rest=rest,
            replays=mixtures.replays,
            worst=worst,
            seconds=round(time.monotonic() - start_s, 3),
            files=files,
            outside=outside,
            outside_damage=mixtures.bundle_damage() if outside else None,
        )


def _causes(
    mixtures: _Mixtures, all_groups: frozenset[int], total: float
) -> tuple[list[list[int]], frozenset[int]]:
    """Return causes that each reproduce the difference, until the remaining groups do not; and those groups."""

    def reproduces(taken: frozenset[int]) -> bool:
        return bool(taken) and mixtures.damage(taken) >= SHARE * total

    causes: list[list[int]] = []
    left = all_groups
    while left and len(causes) < _MAX_CAUSES and reproduces(left):
        causes.append(delta_debugging(sorted(left), reproduces))
        left -= frozenset(causes[-1])
    return causes, left


class _Mixtures:
    """Replay mixtures of the two plans, each once."""

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

    def bundle_damage(self) -> float:
        """Return the damage of the bad bundle against the good one, each served as it is."""
        good, bad = (
            replay(
                ReplayRequest(self._log, side.path, policy="every", frames=self._frames),
                host=self._host,
                report=Silent(),
            )
            for side in (self._mixer.good, self._mixer.bad)
        )
        return damage_of(good, bad)

    def result(self, taken: frozenset[int]) -> ReplayResult:
        if taken not in self._results:
            folder = self._folder / f"mixture-{len(self._results)}"
            bundle = self._mixer.write(folder, [group.name for group in self._named(taken)])
            request = ReplayRequest(self._log, bundle, policy="every", frames=self._frames)
            self._results[taken] = replay(request, host=self._host, report=Silent())
        return self._results[taken]

    def _named(self, taken: frozenset[int]) -> list[Group]:
        return [self._mixer.differing[index] for index in sorted(taken)]


def _worst_frame(
    mixtures: _Mixtures, blamed: frozenset[int], folder: Path | None, host: PluginHost
) -> tuple[FramePair | None, Mapping[str, Path]]:
    """Return the worst frame, and the files of a report of the causes alone against the good plan."""
    good, mixed = mixtures.result(frozenset()), mixtures.result(blamed)
    verdict = judge(good, mixed, Tolerances(), "exact")
    outcome = Outcome(mixed, good, "the good plan", verdict)
    worst = outcome.worst_pairs()
    files = {} if folder is None else write_report(outcome, folder, host)
    return (worst[0] if worst else None), files


def _reference(host: PluginHost) -> Any:
    engines = host.running_engines()
    if _REFERENCE not in engines:
        raise MachineError(
            "avq bisect needs onnxruntime",
            seen="onnxruntime is not installed",
            fix='pip install "avq[build]"',
        )
    return engines[_REFERENCE]
