"""What to type next."""

from __future__ import annotations

from dataclasses import replace

from avq.builder.outcome import Outcome
from avq.render import Html, code, section


def next_steps(outcome: Outcome) -> Html:
    """The closing lines of the command, with the bundle where it will lie."""
    done = replace(outcome, folder=outcome.recipe.output if outcome.answer_is_yes else outcome.folder)
    return section("What to type next", code("\n".join(done.closing())))
