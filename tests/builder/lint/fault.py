"""Faults, put one at a time into a legal network: what each breaks, and what the real parser says to it.

A fault takes the network and a random generator, and answers False where the network has no place for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.builder.lint.graph_maker import Made, Site

Inject = Callable[[Made, np.random.Generator], bool]


@dataclass(frozen=True)
class Fault:
    """Attributes:
    rule: the rule that must name it.
    parser: the real parser's answer: "rejects", "warns", "accepts", or "depends" on the operators around.
    """

    name: str
    rule: str
    parser: str
    inject: Inject


FAULTS: list[Fault] = []


def fault(rule: int, parser: str) -> Callable[[Inject], Inject]:
    def add(inject: Inject) -> Inject:
        FAULTS.append(Fault(inject.__name__, f"AVQ-L{rule:02d}", parser, inject))
        return inject

    return add


def one(rng: np.random.Generator, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def channelwise(made: Made, sites: list[Site]) -> list[Site]:
    return [site for site in sites if made.array(site.dq.input[1]).size > 1]
