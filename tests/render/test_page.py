"""A report is one file that any browser shows, whatever is put into it."""

from __future__ import annotations

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avq.errors import RequestError
from avq.render import (
    Bar,
    Fact,
    Headline,
    Html,
    Mark,
    bar_chart,
    code,
    columns,
    histogram,
    key_figures,
    page,
    picture_pair,
    prose,
    section,
    strip,
    table,
    video,
)
from avq.types import Verdict

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Checks that tags nest, and gathers text and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "poster", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def noise(rows: int = 540, cols: int = 960) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (rows, cols, 3), np.uint8)


def full_page() -> str:
    mark = Mark("deadline", 15, "bad")
    return page(
        "model on data",
        Verdict("no", "lost", ("lost 3 % of the boxes",), ("try --strategy mixed",)),
        [
            section("Figures", key_figures([Fact("p50", "7.9 ms", "float 9.6", "good")]), lead="In short."),
            section(
                "Tried", table([{"engine": "onnxruntime", "p50 ms": 9.6}, {"engine": "x", "p50 ms": None}])
            ),
            section("Latency", bar_chart([Bar("a", 9.6, low=9, high=10)], unit="ms", mark=mark)),
            section("Frames", columns(histogram([8, 9, 20], marks=[mark]), strip([8, 9, 20], limit=mark))),
            section("Pictures", picture_pair(noise(), noise(), ("FP32", "INT8")), video("drive.webm")),
            section("Next", prose("Serve it."), code("avq run")),
        ],
        footer="avq 0.1.0",
    )


def test_a_page_asks_nothing_of_the_network() -> None:
    reader = read(full_page())
    assert "script" not in reader.tags and "link" not in reader.tags and "iframe" not in reader.tags
    outside = [a for a in reader.addresses if not a.startswith("data:image/jpeg;base64,")]
    assert set(outside) == {"drive.webm"}
    assert "url(" not in full_page() and "@import" not in full_page()


def test_the_verdict_comes_first_with_reasons_and_what_to_do() -> None:
    text = read(full_page()).text
    order = [
        text.index(part) for part in ("Refused", "lost 3 %", "try --strategy mixed", "Figures", "7.9 ms")
    ]
    assert order == sorted(order)


def test_eight_pairs_of_pictures_fit_three_megabytes() -> None:
    street = np.asarray(cv2.GaussianBlur(noise(720, 1280), (9, 9), 0), np.uint8)  # as busy as a photograph
    pairs = [section("Pair", picture_pair(street, street, ("a", "b"))) for _ in range(8)]
    assert len(page("t", Headline("v"), pairs)) < 3_000_000


@given(st.text(max_size=40), st.floats() | st.integers() | st.none() | st.booleans())
def test_any_text_and_number_is_shown_and_never_markup(text: str, value: Any) -> None:
    blocks = [
        table([{text: value, "b": text}], caption=text, chosen=0),
        key_figures([Fact(text, text, text)]),
        code(text, text),
        prose(text),
        bar_chart([Bar(text, float(value or 0), note=text)], unit=text, title=text),
        histogram([float(value or 0), 1.0], title=text, marks=[Mark(text, 1.0)]),
        strip([float(value or 0), 1.0], title=text, limit=Mark(text, 1.0), first=text),
    ]
    html = page(text, Headline(text, "good", (text,)), [section(text, *blocks, lead=text)], footer=text)
    assert not set(read(html).tags) & {"script", "iframe", "img", "a"}


def test_markup_in_a_class_name_stays_text() -> None:
    html = page("t", Headline("v"), [section("s", table([{"class": "<script>alert(1)</script>"}]))])
    assert "<script" not in html and "&lt;script&gt;" in html


def test_numbers_are_short_and_missing_ones_a_dash() -> None:
    html = table([{"a": 0.123456, "b": float("nan"), "c": -2.5, "d": True, "e": (1, 2)}])
    for shown in ("0.1235", "\u2013", "\u22122.5", "yes", "1, 2"):
        assert f">{shown}</td>" in html
    assert "nothing to show" in table([])
    mixed = table([{"p50": "7.49", "share": "55 %", "name": "a1"}, {"p50": "", "share": "-", "name": "2"}])
    assert mixed.count('class="number"') == 6, "text of numbers lines up like numbers"


def test_late_frames_stand_out_even_in_a_long_run() -> None:
    quiet = [8.0] * 20_000
    assert "fill bad" not in strip(quiet, limit=Mark("deadline", 15, "bad"))
    quiet[12_345] = 40.0
    assert "fill bad" in strip(quiet, limit=Mark("deadline", 15, "bad"))
    assert len(strip(quiet, limit=Mark("deadline", 15, "bad"))) < 40_000


def test_a_histogram_counts_every_value() -> None:
    html = histogram([1.0, 1.0, 10.0], bins=10)
    assert html.count('class="fill') == 10 and "V0.00h" in html and "V50.00h" in html


@pytest.mark.parametrize("name", ["/etc/x.webm", "../x.webm", "https://x.org/x.webm", "javascript:x", ""])
def test_a_clip_must_lie_beside_its_page(name: str) -> None:
    with pytest.raises(RequestError, match="folder of its page"):
        video(name)


@pytest.mark.slow
def test_a_browser_shows_it_light_and_dark(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "report.html").write_text(full_page(), encoding="utf-8")
    paper = [shot(browser, tmp_path, scheme) for scheme in (1, 0)]
    assert paper[0].mean() > 200 and paper[1].mean() < 90


def shot(browser: str, folder: Path, scheme: int) -> np.ndarray:
    """The empty margin of the page, as the browser paints it; scheme 0 is dark, 1 light."""
    image = folder / f"{scheme}.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking"]
    command += ["--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", f"--screenshot={image}"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,800"]
    page_uri = (folder / "report.html").as_uri()
    subprocess.run([*command, page_uri], capture_output=True, timeout=300, check=False)
    if not image.is_file():
        pytest.skip("chromium cannot run here")
    return np.asarray(cv2.imread(str(image)))[:, :60]


def test_html_of_a_section_is_what_a_page_takes() -> None:
    assert "<section>" in page("t", Headline("v"), [section("s", Html("<p>x</p>"))])
