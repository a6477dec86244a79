"""Which of many parts cause something, by halving: the search of ``avq bisect``, pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
