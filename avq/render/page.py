"""One self-contained HTML page: the verdict first, then figures, tables and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NewType

from avq.render.style import STYLE
from avq.types import Verdict

Html = NewType("Html", str)
Tone = Literal["good", "bad", "warn", "plain"]

_NUMBER_TEXT = re.compile(r"[-+\u2212]?\d[\d,]*(\.\d+)?( ?%)?|[-\u2013]")
#: Longer values of key figures are set smaller, so that a word is not broken.
_LONG_VALUE = 9
#: Key figures in one row; more make rows of equal length.
_WIDEST = 5

#: Nothing is fetched: pictures are inline, a clip lies beside the page, scripts do not exist.
_POLICY = "default-src 'none'; img-src data:; media-src 'self' file: data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Headline:
    """The answer of a report in one sentence, and what led to it.

    Attributes:
        text: the sentence; tone: its colour; reasons: one line each.
    """

    text: str
    tone: Tone = "plain"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fact:
    """One key figure: ``value`` with its unit, a note below, a tone where it is good or bad."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


def headline_of(verdict: Verdict, text: str = "") -> Headline:
    """The headline for a gate's verdict; ``text`` replaces the standard sentence."""
    standard = "Accepted: this bundle may serve" if verdict.accepted else "Refused: this bundle may not serve"
    tone: Tone = "good" if verdict.accepted else "bad"
    return Headline(text or standard, tone, verdict.reasons + verdict.fixes)


def page(title: str, verdict: Headline | Verdict, sections: Sequence[Html], *, footer: str = "") -> str:
    """The whole document. ``title`` names the run, ``sections`` come from ``section()``."""
    head = verdict if isinstance(verdict, Headline) else headline_of(verdict)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in head.reasons)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<header class="{head.tone}">\n<p class="kicker">{escape(title)}</p>\n<h1>{escape(head.text)}</h1>\n'
        + (f'<ul class="reasons">{reasons}</ul>\n' if reasons else "")
        + "</header>\n<main>\n"
        + "\n".join(sections)
        + f"\n</main>\n<footer>{escape(footer) or 'avq'}</footer>\n</body>\n</html>\n"
    )


def section(title: str, *blocks: Html, lead: str = "") -> Html:
    """A titled part of the page; ``lead`` says in one sentence what it shows."""
    intro = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    body = "\n".join(f'<div class="block">{block}</div>' for block in blocks)
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{intro}{body}\n</section>")


def columns(*blocks: Html) -> Html:
    """Blocks side by side where there is room, below each other on a phone."""
    return Html('<div class="columns">' + "".join(f"<div>{block}</div>" for block in blocks) + "</div>")


@dataclass(frozen=True, slots=True)
class Cause:
    """Something that costs: what it is, the way out, and its measured price where there is one."""

    what: str
    fix: str
    cost: str = ""
    tone: Tone = "plain"


def causes(found: Sequence[Cause]) -> Html:
    """Causes with their fixes, in the order given."""
    if not found:
        return Html('<p class="lead">No known cause of lost time was found.</p>')
    cells = "".join(
        f'<div><h3>{escape(c.what)}</h3><span class="cost {c.tone}">{escape(c.cost)}</span>'
        f"<p><b>Fix:</b> {escape(c.fix)}</p></div>"
        for c in found
    )
    return Html(f'<div class="causes">{cells}</div>')


def folded(title: str, block: Html) -> Html:
    """A long block behind its title; printing and searching browsers open it."""
    return Html(f"<details><summary>{escape(title)}</summary>{block}</details>")


def prose(text: str) -> Html:
    """Paragraphs; an empty line parts them."""
    parts = [part for part in text.split("\n\n") if part.strip()]
    return Html("".join(f"<p>{escape(part.strip())}</p>" for part in parts))


def code(text: str, caption: str = "") -> Html:
    """Commands to type next; one click selects all of them."""
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure><pre><code>{escape(text)}</code></pre>{note}</figure>")


def key_figures(facts: Sequence[Fact]) -> Html:
    """The few numbers to remember, large."""
    cells = "".join(
        f'<div><dt>{escape(fact.label)}</dt><dd class="{_dd_class(fact)}">{escape(fact.value)}</dd>'
        + (f"<small>{escape(fact.note)}</small>" if fact.note else "")
        + "</div>"
        for fact in facts
    )
    wide = max(1, math.ceil(len(facts) / math.ceil(len(facts) / _WIDEST))) if facts else 1
    return Html(f'<dl class="figures" style="--columns:{wide}">{cells}</dl>')


def _dd_class(fact: Fact) -> str:
    return f"{fact.tone} long" if len(fact.value) > _LONG_VALUE else fact.tone


def table(rows: Sequence[Mapping[str, object]], *, caption: str = "", chosen: int | None = None) -> Html:
    """Rows with the same keys; the keys of the first are the heads. ``chosen`` marks one row.

    A column is set as numbers when every value in it is a number, the text of one, or missing.
    """
    if not rows:
        return Html(f'<p class="lead">{escape(caption or "nothing to show")}</p>')
    names = list(rows[0])
    numeric = {name: all(_is_number(row.get(name)) for row in rows) for name in names}
    kind = {name: ' class="number"' if numeric[name] else "" for name in names}
    head = "".join(f'<th scope="col"{kind[name]}>{escape(name)}</th>' for name in names)
    body = "".join(
        f"<tr{' class=chosen' if index == chosen else ''}>"
        + "".join(f"<td{kind[name]}>{escape(_text(row.get(name)))}</td>" for name in names)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="scroll"><table>{note}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return not value or _NUMBER_TEXT.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def number(value: float) -> str:
    """Four significant digits without exponent where it stays short."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return text.replace("-", "\u2212")
