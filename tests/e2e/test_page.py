"""The page of a real run in a real browser: it loads, updates, shows a degradation, and survives a restart."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_modes import CONFIG, FPS, Vehicle
from tests.ports import free_port

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser")
CHROMIUM = Path("/usr/bin/chromium")
SIZES_PX = ((390, 844), (1280, 800), (2560, 1440))
#: Every text on the page against what lies behind it, as WCAG 2 counts contrast.
CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walk.nextNode(); text; text = walk.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.getClientRects().length || node.closest("noscript")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${text.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
#: How many different colours a canvas shows; 1 is blank.
COLOURS = """(selector) => {
  const canvas = document.querySelector(selector);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4 * 97) seen.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]);
  return seen.size;
}"""


CHANGES = "[...document.querySelectorAll('#changes li')].map((one) => one.innerText)"
#: Parts of the page and controls that a screen reader could not name.
UNNAMED = """() => [...document.querySelectorAll("section, button, canvas[role], ol[tabindex]")]
  .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() && one.tagName === "BUTTON" ||
    document.getElementById(one.getAttribute("aria-labelledby"))?.textContent.trim()))
  .map((one) => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def vehicle(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Vehicle:
    return Vehicle(tmp_path_factory.mktemp("page"), built[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is not there (apt install chromium)")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


REAR = """
[[cameras]]
id = "rear"
source = "scene://drive?seed=8&fps=4&size=320x192&weather=night"
"""


@contextmanager
def daemon(vehicle: Vehicle, port: int, more: str = "") -> Iterator[subprocess.Popen[str]]:
    process = vehicle.run(CONFIG.format(fps=FPS) + more, "--web", f"127.0.0.1:{port}")
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=120)


@contextmanager
def looking(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A page that must neither complain nor ask anybody else for anything."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(180_000)
    foreign: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: None if r.url.startswith(address) else foreign.append(r.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            None
            if message.type != "error" or "Failed to load resource" in message.text
            else complaints.append(message.text)
        ),
    )
    page.goto(address)
    yield page
    context.close()
    assert not foreign and not complaints


@contextmanager
def looking_after_start(vehicle: Vehicle, browser: Any, port: int) -> Iterator[tuple[Any, Any]]:
    with daemon(vehicle, port) as process:
        wait_for_port(port)

        def stop() -> None:
            process.terminate()
            process.wait(120)

        with looking(browser, f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": 800}) as page:
            yield page, stop


def wait_for_port(port: int) -> None:
    for _ in range(1800):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("no server listens")


def until(page: Any, expression: str, argument: Any = None, timeout_s: float = 180.0) -> None:
    """The page's policy forbids evaluating text, which the tool's own waiting would need."""
    end_s = time.monotonic() + timeout_s
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end_s, f"never came: {expression}"
        page.wait_for_timeout(100)


def state(page: Any, name: str) -> None:
    page.wait_for_selector(f'body[data-state="{name}"]')


@pytest.mark.slow
def test_the_page_follows_a_run_down_the_ladder_and_over_a_restart(
    vehicle: Vehicle, browser: Any, port: int
) -> None:
    vehicle.set_load(1.0)
    with looking_after_start(vehicle, browser, port) as (page, stop):
        state(page, "live")
        until(page, "document.getElementById('now-mode').textContent === 'best'")
        assert page.title().startswith("Live")
        until(page, "!document.getElementById('picture-note').textContent")
        until(page, f"(one) => ({COLOURS})(one) > 200", "#picture")
        until(page, f"(one) => ({COLOURS})(one) > 5", "#strip")
        until(page, "document.getElementById('picture-facts').textContent.startsWith('frame ')")
        before = page.inner_text("#frames-sum")
        until(page, "(was) => document.getElementById('frames-sum').innerText !== was", before)
        assert "all accounted for" in page.inner_text("#frames-sum")
        until(page, "document.getElementById('sinks').textContent.includes('standard output')")

        vehicle.set_load(10.0)
        until(page, "document.getElementById('now-mode').textContent === 'small'")
        until(page, "document.getElementById('changes').textContent.includes('best → small')")
        assert "frames in a row took" in page.inner_text("#changes")
        assert page.inner_text("#ladder [aria-current] b") == "small"
        assert int(page.inner_text("#now-late").replace(",", "")) >= 3
        page.focus("#strip")
        until(page, "document.querySelectorAll('#events li b').length >= 1")
        page.keyboard.press("End")
        until(page, "/mode (best|small)$/.test(document.getElementById('strip-read').textContent)")

        changes = page.evaluate(CHANGES)
        stop()
        state(page, "gone")
        assert page.is_visible("#gone") and "has not answered since" in page.inner_text("#gone")
        vehicle.set_load(1.0)
        with daemon(vehicle, port):
            state(page, "live")
            assert not page.is_visible("#gone")
            until(page, "document.getElementById('events').textContent.includes('the daemon was restarted')")
            assert changes and not set(changes) & set(page.evaluate(CHANGES))  # of the run before
            page.click("#pause")
            page.wait_for_timeout(300)
            paused = page.inner_text("#frames-sum")
            page.wait_for_timeout(1500)
            assert page.inner_text("#frames-sum") == paused
            page.click("#pause")
            until(page, "(was) => document.getElementById('frames-sum').innerText !== was", paused)


@pytest.mark.slow
def test_the_page_fits_every_screen_in_both_schemes_and_reads_well(
    vehicle: Vehicle, browser: Any, port: int
) -> None:
    vehicle.set_load(1.0)
    with daemon(vehicle, port, REAR):
        wait_for_port(port)
        address = f"http://127.0.0.1:{port}"
        for scheme in ("light", "dark"):
            with looking(browser, address, color_scheme=scheme, reduced_motion="reduce") as page:
                state(page, "live")
                until(page, "!document.getElementById('picture-note').textContent")
                for camera in ("front", "rear"):  # also the one that is shown large
                    until(page, f"(one) => ({COLOURS})(one) > 50", f"[data-camera={camera}] canvas")
                assert page.evaluate("document.getAnimations().length") == 0
                assert page.evaluate(CONTRASTS) == []
                for width_px, height_px in SIZES_PX:
                    page.set_viewport_size({"width": width_px, "height": height_px})
                    page.wait_for_timeout(200)
                    wide, tall = page.evaluate(
                        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
                    )
                    assert wide == width_px
                    assert tall <= height_px or width_px < 2560
                assert page.evaluate(UNNAMED) == []
                assert page.evaluate("document.querySelectorAll('h1').length") == 1


def test_without_the_libraries_of_the_page_a_run_says_so_and_serves(
    built: tuple[Path, dict[str, Any]],
) -> None:
    arguments = ["run", "--bundle", str(built[0]), "--source", "scene://drive?frames=3", "--json"]
    code = f"""import sys
sys.modules["starlette"] = None
sys.argv[1:] = {[*arguments, "--allow-unaccepted"]!r}
from avq.cli import main
main()"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["captured"] == 3
    output = " ".join(done.stderr.split())
    assert "no page" in output and 'pip install "avq[web]"' in output
