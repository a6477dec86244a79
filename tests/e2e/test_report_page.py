"""report.html of a real build: every part of the story is there, and a phone shows it without scrolling sideways."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from avq.bundle import REPORT, open_bundle

PHONE_PX = 500  # the narrowest window a browser opens


@pytest.fixture(scope="module")
def page(built: tuple[Path, dict[str, Any]]) -> Path:
    return Path(built[1]["bundle"]) / REPORT


def test_verdict_times_layers_thresholds_and_machine_are_told(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert html.index("<h1>") < html.index("Summary") < html.index("Engines tried")
    for part in ("Precision of every layer", "Histograms and thresholds", "Machine and method"):
        assert part in html
    assert "Where the time goes" in html or "Why is INT8 slower here?" in html
    for method in ("entropy", "mse", "percentile", "minmax"):
        assert f"</i>{method} " in html, "each method's threshold stands in the legend of a histogram"
    assert len(html) < 3_000_000 and "<script" not in html


def test_the_bundle_holds_the_page_it_was_told_with(page: Path) -> None:
    assert open_bundle(page.parent, allow_unaccepted=True).read(REPORT) == page.read_bytes()


@pytest.mark.slow
def test_a_phone_shows_it_without_scrolling_sideways(page: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    image = tmp_path / "phone.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking"]
    command += ["--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={image}"]
    command += [f"--window-size={PHONE_PX},9000", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=300, check=False)
    if not image.is_file():
        pytest.skip("chromium cannot run here")
    seen = np.asarray(cv2.imread(str(image)), np.float64)
    margin = seen[:, -8:]
    assert np.ptp(margin) < 40, "nothing reaches into the right margin"
    assert seen[:, :-40].std() > 10, "the page is not empty"
