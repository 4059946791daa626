"""A small study with its report, and Debian's Chromium to open it in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outlier_moe.plots.saving import bundled
from outlier_moe.recording_files import Recording
from outlier_moe.report.page import write_report
from tests.reported_study import made_up_study

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Ignored by git, as all results are; kept after the tests for whoever wants to look.
ARTEFACTS = Path(__file__).parents[2] / "results" / "test-artefacts" / "browser"
PICTURE_TRIES = 5


@pytest.fixture(scope="session")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings of all models and the report of their comparison."""
    folder = tmp_path_factory.mktemp("study")
    write_report(made_up_study(folder), folder / "index.html", vega_bundle=bundled())
    return folder


def keep_picture(browser: Chrome, name: str, *, of: str | None = None) -> None:
    """Keep a picture of the window, or of what a selector names, for whoever wants to look.

    The driver waits ten seconds for a picture, and on a busy machine drawing a window as tall as the page takes longer:
    a part is taken from a window of the usual height, and a picture that came too late is asked for again.
    """
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.common.by import By

    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    if of is not None:
        width = browser.execute_script("return window.innerWidth")
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    part = None if of is None else browser.find_element(By.CSS_SELECTOR, of)
    for n_left in reversed(range(PICTURE_TRIES)):
        try:
            picture = browser.get_screenshot_as_png() if part is None else part.screenshot_as_png
            (ARTEFACTS / name).write_bytes(picture)
            return
        except TimeoutException:
            if not n_left:
                raise


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
