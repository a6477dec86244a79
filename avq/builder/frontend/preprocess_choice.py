"""The choice among preprocessings by evidence per picture, or the reason why the pictures do not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avq.builder.frontend.preprocess_candidates import Candidate, geometries, same_numbers
from avq.builder.frontend.preprocess_evidence import Evidence, chance_of, same_boxes
from avq.errors import RequestError
from avq.preprocess import spec_text
from avq.types import F64, PreprocessSpec

# One candidate is clearly better than another with 10 % more evidence at a chance below this: in general; when the
# better one is published and the other is not, or later; when only the other one is published.
_BETTER_SHARE = 0.10
_CHANCE, _PUBLISHED_CHANCE, _UNPUBLISHED_CHANCE = 0.02, 0.25, 0.01
# Larger objects are found more often, whatever the network was trained with: a geometry needs more.
_GEOMETRY_SHARE = 0.25
# So many of the likeliest rivals are listed in every geometry.
_GEOMETRIES_OF = 4
#: Below these the pictures do not decide.
FEWEST_OBJECTS = 8
FEWEST_PICTURES = 4


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its evidence.

    Attributes:
        evidence: one per picture; a candidate without a chance has fewer than the others.
    """

    candidate: Candidate
    evidence: tuple[Evidence, ...]

    @property
    def scores(self) -> F64:
        return np.array([one.score for one in self.evidence], np.float64)

    @property
    def mean(self) -> float:
        return float(self.scores.mean())


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen candidate and the rule that chose it, or the reason why none was.

    Attributes:
        chosen: index; the best one where the pictures do not decide.
        rule: why this one, for people.
        undecided: why the pictures do not decide; empty when they do.
        rivals: indices of candidates that are not clearly worse than the chosen one.
    """

    chosen: int
    rule: str
    undecided: str
    rivals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The candidate that stands for all with its channel order and numbers, and why its geometry is in doubt."""

    index: int
    doubt: str = ""


def choose(scored: Sequence[Scored]) -> Choice:
    """Choose by the evidence of the pictures on which most candidates were run.

    1. Of candidates that differ in geometry only, the first published one is taken. A published one that is better
       takes its place with 25 % more evidence at a chance below 1 %, and leaves it in doubt at a chance below 2 %. An
       unpublished one with different boxes leaves it in doubt unless it is worse by 10 % at a chance below 2 %.
       Without a published one, the best is taken when it is better than every other with different boxes by 25 % at
       a chance below 1 %.
    2. The best of these is chosen when it is clearly better than every other with different boxes: 10 % more
       evidence, at a chance below 2 %; 25 % when the best is published and the other is not, or later; 1 % when only
       the other is. Of those with the same boxes a published one is preferred.
    3. The pictures decide nothing when the chosen one has fewer than 8 objects, or objects on fewer than 4 pictures.

    The chance is that of the paired randomisation test over pictures, one-sided.
    """
    most = max(len(one.evidence) for one in scored)
    full = [i for i, one in enumerate(scored) if len(one.evidence) == most]
    groups: list[list[int]] = []
    for i in full:
        same = [g for g in groups if same_numbers(scored[g[0]].candidate.spec, scored[i].candidate.spec)]
        if same:
            same[0].append(i)
        else:
            groups.append([i])
    numbers = [_geometry(scored, group) for group in groups]
    best = max(numbers, key=lambda one: (scored[one.index].mean, scored[one.index].candidate.published))
    others = [one.index for one in numbers if one.index != best.index]
    near = [i for i in others if not _clearly_better(scored, best.index, i)]
    alike = [i for i in near if _same(scored, best.index, i)]
    unlike = [i for i in near if i not in alike]
    published = [i for i in (best.index, *alike) if scored[i].candidate.published]
    chosen = published[0] if published else best.index
    doubt = _too_few(scored[chosen]) or best.doubt or _tie(scored, best.index, unlike)
    return Choice(chosen, _rule(scored, chosen, best.index, alike), doubt, (best.index, *near))


def _clearly_better(scored: Sequence[Scored], better: int, worse: int) -> bool:
    """Whether one candidate has 10 % more evidence, by more than chance over the same pictures."""
    one, other = scored[better], scored[worse]
    limit = _CHANCE
    if one.candidate.published and (not other.candidate.published or better < worse):
        limit = _PUBLISHED_CHANCE
    elif other.candidate.published and not one.candidate.published:
        limit = _UNPUBLISHED_CHANCE
    return _is_better(one, other, limit)


def _is_better(one: Scored, other: Scored, limit: float) -> bool:
    return _margin(one, other) > _BETTER_SHARE and _chance(one, other) <= limit


def _geometry(scored: Sequence[Scored], group: Sequence[int]) -> _Numbers:
    best = max(group, key=lambda i: scored[i].mean)
    published = [i for i in group if scored[i].candidate.published]
    if not published:
        unlike = [i for i in group if not _far_better(scored[best], scored[i]) and not _same(scored, best, i)]
        return _Numbers(best, _tie(scored, best, unlike))
    first = published[0]
    if first == best or _same(scored, first, best):
        unlike = [
            i
            for i in group
            if not scored[i].candidate.published
            and not _is_better(scored[first], scored[i], _CHANCE)
            and not _same(scored, first, i)
        ]
        return _Numbers(first, _tie(scored, first, unlike))
    one, other = scored[best], scored[first]
    chance = _chance(one, other)
    if _far_better(one, other):
        return _Numbers(best)
    in_doubt = chance <= _CHANCE or not one.candidate.published
    return _Numbers(first, _tie(scored, best, [first]) if in_doubt else "")


def _far_better(one: Scored, other: Scored) -> bool:
    return _margin(one, other) > _GEOMETRY_SHARE and _chance(one, other) <= _UNPUBLISHED_CHANCE


def _same(scored: Sequence[Scored], a: int, b: int) -> bool:
    return same_boxes(*([one.found for one in scored[i].evidence] for i in (a, b)))


def _margin(one: Scored, other: Scored) -> float:
    """Additional evidence, as a share; 0 when ``one`` has none."""
    return (one.mean - other.mean) / one.mean if one.mean > 0 else 0.0


def _chance(one: Scored, other: Scored) -> float:
    return chance_of(one.scores - other.scores)


def _too_few(one: Scored) -> str:
    objects = sum(evidence.objects for evidence in one.evidence)
    pictures = sum(evidence.objects > 0 for evidence in one.evidence)
    if objects >= FEWEST_OBJECTS and pictures >= FEWEST_PICTURES:
        return (
            "" if one.mean > 0 else "most boxes of every candidate are lost when a picture changes a little"
        )
    return (
        f"too few objects: {objects} on {pictures} of {len(one.evidence)} pictures; "
        f"{FEWEST_OBJECTS} on {FEWEST_PICTURES} pictures are needed"
    )


def _tie(scored: Sequence[Scored], best: int, others: Sequence[int]) -> str:
    if not others:
        return ""
    listed = ", ".join(
        f"{scored[i].candidate.label} (chance {_chance(scored[best], scored[i]):.2f})" for i in others
    )
    return f"{scored[best].candidate.label} is not clearly better than {listed}, and their boxes differ"


def _rule(scored: Sequence[Scored], chosen: int, best: int, alike: Sequence[int]) -> str:
    words = ["published"] if scored[chosen].candidate.published else []
    words += ["clearly the most evidence"] if chosen == best else []
    same = [scored[i].candidate.label for i in (best, *alike) if i != chosen]
    words += [f"the same boxes as {', '.join(same)}"] if same else []
    return "; ".join(words)


# For people.


def table(scored: Sequence[Scored], choice: Choice, unit: str) -> tuple[str, ...]:
    """Return one line per candidate, the best first: evidence, values, and how it stands to the chosen one."""
    ranked = sorted(range(len(scored)), key=lambda i: (-len(scored[i].evidence), -scored[i].mean))
    return tuple(
        f"  {scored[i].candidate.label}  values {scored[i].candidate.values}: {scored[i].mean:.3f} {unit}"
        f"{_standing(scored, i, choice)}"
        for i in ranked
    )


def _standing(scored: Sequence[Scored], index: int, choice: Choice) -> str:
    one, chosen = scored[index], scored[choice.chosen]
    words = ["published"] if one.candidate.published else []
    if index == choice.chosen and not choice.undecided:
        words.append("chosen")
    elif len(one.evidence) < len(chosen.evidence):
        words.append(f"left out after {len(one.evidence)} pictures")
    elif index != choice.chosen:
        words.append(f"chance {_chance(chosen, one):.2f}")
    if one.candidate.twins:
        words.append(f"within 1 %: {'; '.join(map(_numbers_text, one.candidate.twins))}")
    return f" ({'; '.join(words)})" if words else ""


def _numbers_text(spec: PreprocessSpec) -> str:
    return spec_text(spec).split(",", 2)[2]


def undecided_error(scored: Sequence[Scored], choice: Choice) -> RequestError:
    """Return the error that lists every candidate with a ready ``--preprocess`` line, the likeliest first."""
    ranked = sorted(range(len(scored)), key=lambda i: (i not in choice.rivals, -scored[i].mean))
    lines: dict[str, str] = {}
    for i in ranked:
        one = scored[i]
        note = f"evidence {one.mean:.3f}{', published' if one.candidate.published else ''}"
        lines[one.candidate.label] = f"{note}, values {one.candidate.values}"
        lines.update((spec_text(twin), "within 1 % of it") for twin in one.candidate.twins)
    likeliest = [i for i in ranked if i in choice.rivals and scored[i].mean > 0][:_GEOMETRIES_OF]
    for i in likeliest:
        for shape in geometries(scored[i].candidate):
            for spec in (shape.spec, *shape.twins):
                lines.setdefault(spec_text(spec), "another geometry")
    pictures = max(len(one.evidence) for one in scored)
    return RequestError(
        f"the pictures do not decide the preprocessing: {choice.undecided}",
        seen=f"{len(scored)} preprocessings on {pictures} pictures",
        fix="\n".join(["give the one that the model was trained with:",
                       *(f"  --preprocess {text}  ({note})" for text, note in lines.items()),
                       "each also with center-letterbox-PAD, top-left-letterbox-PAD, stretch or crop;",
                       "or more pictures of what the model detects (--data), or their --labels"]),
    )  # fmt: skip
