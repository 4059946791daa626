"""A small study with its report, and Debian's Chromium to open it in."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outlier_moe.plots.saving import bundled
from outlier_moe.report.page import write_report
from outlier_moe.tables.recording import Recording
from tests.reported_study import made_up_study

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Ignored by git, as all results are; kept after the tests for whoever wants to look.
ARTEFACTS = Path(__file__).parents[2] / "results" / "test-artefacts" / "browser"


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings of all models and the report of their comparison."""
    folder = tmp_path_factory.mktemp("study")
    write_report(made_up_study(folder), folder / "index.html", vega_bundle=bundled())
    return folder


def keep_picture(browser: Chrome, name: str, *, of: str | None = None) -> None:
    """Keep a picture of the window, or of what a selector names, for whoever wants to look.

    Chromium is asked for a part itself: its driver first moves the window there, which hangs where that is as tall as
    the page.
    """
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    if of is None:
        browser.save_screenshot(str(ARTEFACTS / name))
        return
    box = "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
    sides = "return {x: box.left + scrollX, y: box.top + scrollY, width: box.width, height: box.height, scale: 1}"
    wanted = {"clip": browser.execute_script(box + sides, of), "captureBeyondViewport": True}
    answer = browser.execute_cdp_cmd("Page.captureScreenshot", wanted)
    (ARTEFACTS / name).write_bytes(base64.b64decode(answer["data"]))


def recording_of(folder: Path, model: str) -> Recording:
    """The recording of one model of the study."""
    return Recording(folder / model / "outliers", json.loads((folder / model / "outliers" / "run.json").read_text()))


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """Chromium without a screen; skips where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield found
    found.quit()
