"""One self-contained HTML page: the verdict first, then figures, tables and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NewType

from avq.types import Verdict

# Style sheet of every report: two colour schemes, no external fonts.

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1b1f24; --soft: #5d6671; --line: #e4e2dd; --wash: #f2f0ec;
  --accent: #2f5d8c; --accent-soft: #b9cbdd; --good: #22744a; --bad: #b0342b; --warn: #8f6200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e7e9ec; --soft: #9aa4af; --line: #2c323a; --wash: #20252c;
    --accent: #7fb0e0; --accent-soft: #35506b; --good: #5cc08d; --bad: #f0837a; --warn: #dcab4f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main, header, footer { max-width: 64rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: clamp(1.75rem, 6vw, 4rem); }
.kicker { margin: 0 0 .75rem; color: var(--soft); font-size: .875rem; letter-spacing: .02em;
  overflow-wrap: anywhere; }
h1 { margin: 0; font-size: clamp(1.75rem, 5vw, 2.75rem); line-height: 1.14; letter-spacing: -.022em;
  font-weight: 650; text-wrap: balance; }
h1::before { content: ""; display: block; width: 2.75rem; height: .375rem; border-radius: 1rem;
  margin-bottom: 1.25rem; background: var(--tone); }
.good { --tone: var(--good); } .bad { --tone: var(--bad); } .warn { --tone: var(--warn); }
.plain { --tone: var(--accent); }
ul.reasons { margin: 1.25rem 0 0; padding: 0; list-style: none; color: var(--soft); max-width: 46rem; }
ul.reasons li { padding-left: 1.25rem; text-indent: -1.25rem; }
ul.reasons li::before { content: "\\2013"; display: inline-block; width: 1.25rem; text-indent: 0;
  color: var(--tone); }
section { margin-top: clamp(2.25rem, 6vw, 3.75rem); }
h2 { margin: 0 0 .35rem; font-size: 1.3rem; line-height: 1.3; letter-spacing: -.012em; font-weight: 620; }
p { margin: 0 0 1rem; max-width: 44rem; }
p.lead { color: var(--soft); margin-bottom: 1.25rem; }
.block { margin: 0 0 1.5rem; }
h2 + .block { margin-top: .9rem; }
.figures { display: grid; gap: 1px; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; overflow: hidden;
  grid-template-columns: repeat(auto-fit, minmax(max(10.25rem, calc(100% / var(--columns, 5) - 2px)), 1fr)); }
.figures > div { outline: 1px solid var(--line); padding: 1rem 1.15rem 1.1rem; }
.figures dt { color: var(--soft); font-size: .8125rem; }
.figures dd { margin: .1rem 0 0; font-size: 1.65rem; line-height: 1.25; font-weight: 600; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.figures dd.long { font-size: 1.2rem; line-height: 1.72; letter-spacing: -.01em; }
.figures dd.good, .figures dd.bad, .figures dd.warn { color: var(--tone); }
.figures small { display: block; color: var(--soft); font-size: .8125rem; line-height: 1.4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; line-height: 1.45; }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: .8125rem; padding-top: .6rem; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .8125rem; vertical-align: bottom; }
th, td { padding: .5rem 1.1rem .5rem 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
td { vertical-align: top; overflow-wrap: break-word; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.chosen td { font-weight: 600; }
tr.chosen td:first-child { box-shadow: inset .2rem 0 var(--accent); padding-left: .75rem; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .8125rem; line-height: 1.45; margin-top: .5rem; }
figure h3 { margin: 0 0 .6rem; font-size: .9375rem; font-weight: 600; }
.bars { display: grid; grid-template-columns: fit-content(40%) 1fr max-content; gap: .55rem .9rem;
  align-items: center; font-size: .9375rem; }
.bars .row { display: contents; }
.bars .name { overflow-wrap: anywhere; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars .value small { color: var(--soft); }
.bars svg { width: 100%; height: 1.25rem; }
svg { display: block; width: 100%; overflow: visible; }
.plot { height: 8.5rem; }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: .8125rem; margin-top: .35rem;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .8125rem; color: var(--soft);
  margin-top: .45rem; font-variant-numeric: tabular-nums; }
.legend .plain { --tone: var(--ink); }
.legend i { display: inline-block; width: 1rem; height: 0; border-top: .16rem solid var(--tone, var(--accent));
  vertical-align: .25em; margin-right: .4rem; }
.fill { fill: var(--accent); } .fill.good, .fill.bad, .fill.warn { fill: var(--tone); }
.fill.faint { fill: var(--accent-soft); }
.track { fill: var(--wash); } .rule { stroke: var(--soft); } .whisker { stroke: var(--ink); }
.rule.good, .rule.bad, .rule.warn { stroke: var(--tone); } .rule.plain { stroke: var(--ink); }
.base { stroke: var(--line); }
.scatter { position: relative; height: 19rem; margin: 0 .5rem 1.9rem 2.9rem; border-left: 1px solid var(--line);
  border-bottom: 1px solid var(--line); font-size: .8125rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.scatter svg { position: absolute; inset: 0; height: 100%; }
.scatter span { position: absolute; white-space: nowrap; line-height: 1.2; }
.scatter .xt { top: 100%; padding-top: .4rem; transform: translateX(-50%); }
.scatter .yt { right: 100%; padding-right: .5rem; transform: translateY(50%); }
.scatter .name { padding: .35rem .6rem; pointer-events: none; }
.scatter .name.chosen { color: var(--ink); font-weight: 600; }
.axis-name { margin: 0 0 .6rem; font-size: .8125rem; color: var(--soft); }
.axis-name.right { text-align: right; margin: 0; max-width: none; }
.s0 { --tone: var(--accent); } .s1 { --tone: var(--soft); } .s2 { --tone: var(--warn); } .s3 { --tone: var(--good); }
.scatter path { fill: none; stroke: var(--tone); }
.scatter .dot { stroke-width: 9; stroke-linecap: round; } .scatter .dot.chosen { stroke-width: 13; }
.scatter .ring { stroke-width: 23; stroke-linecap: round; stroke: var(--accent-soft); }
.scatter .join { stroke-width: 1.5; opacity: .55; } .scatter .interval { stroke-width: 2; opacity: .5; }
.scatter .grid { stroke: var(--line); stroke-width: 1; }
.scatter .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 6 4; }
.legend b { display: inline-block; width: .62rem; height: .62rem; border-radius: 50%; background: var(--tone);
  margin-right: .45rem; }
.legend .swatch.plain { --tone: var(--accent); } .legend .swatch b { border-radius: .15rem; }
.legend .first b, .legend .first + .s0 b { border-radius: .15rem; }
.legend .ringed b { background: var(--accent); box-shadow: 0 0 0 .22rem var(--accent-soft); margin: 0 .6rem 0 .2rem; }
.first { --tone: var(--accent-soft); }
.bar.twice { display: grid; gap: 2px; }
.bar.twice .one { display: block; height: .55rem; border-radius: .15rem; background: var(--tone); min-width: 1px; }
details > summary { cursor: pointer; color: var(--accent); font-size: .9375rem; margin-bottom: .75rem; }
.causes { display: grid; gap: 1px; background: var(--line); border: 1px solid var(--line); border-radius: .75rem;
  overflow: hidden; }
.causes > div { background: var(--card); padding: .95rem 1.15rem; display: grid; gap: .1rem 1.5rem;
  grid-template-columns: 1fr max-content; }
.causes h3 { margin: 0; font-size: 1rem; font-weight: 600; }
.causes .cost { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--tone); white-space: nowrap; }
.causes p { grid-column: 1 / -1; margin: 0; color: var(--soft); font-size: .9375rem; max-width: none; }
.causes p b { color: var(--ink); font-weight: 500; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.columns { display: grid; gap: 1.5rem 2.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
img, video { display: block; width: 100%; height: auto; border-radius: .5rem; background: var(--wash); }
.pair img { max-height: 26rem; object-fit: contain; }
pre { margin: 0; padding: .95rem 1.15rem; border-radius: .6rem; background: var(--wash); overflow-x: auto;
  font: .875rem/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
pre code { user-select: all; }
footer { margin-top: clamp(3rem, 8vw, 5rem); padding-bottom: 2.5rem; color: var(--soft); font-size: .8125rem;
  overflow-wrap: anywhere; }
footer::before { content: ""; display: block; border-top: 1px solid var(--line); margin-bottom: 1rem; }
@media (max-width: 36rem) {
  .bars { display: block; }
  .bars .row { display: grid; grid-template-columns: 1fr max-content; gap: .2rem .9rem; margin-bottom: .8rem; }
  .bars .bar { grid-column: 1 / -1; order: 1; }
  .scatter .name:not(.chosen) { display: none; }
  th, td { white-space: nowrap; }
  td:last-child:not(.number) { white-space: normal; min-width: 13rem; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""


Html = NewType("Html", str)
Tone = Literal["good", "bad", "warn", "plain"]

_NUMBER_TEXT = re.compile(r"[-+\u2212]?\d[\d,]*(\.\d+)?( ?%)?|[-\u2013]")
#: Longer values of key figures are set smaller, so that a word is not broken.
_LONG_VALUE = 9
#: Key figures in one row; more make rows of equal length.
_WIDEST = 5

#: The page loads nothing: pictures are inline, a clip is in the same folder, and there are no scripts.
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
    unsure = "no" not in (verdict.accuracy, verdict.time) and "cannot tell" in (
        verdict.accuracy,
        verdict.time,
    )
    refused = "the gate cannot tell whether this bundle may serve" if unsure else "this bundle may not serve"
    standard = "Accepted: this bundle may serve" if verdict.passed else f"Refused: {refused}"
    tone: Tone = "good" if verdict.passed else "bad"
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
