"""The report on paper: whole without having been scrolled through, and no wider than the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.test_report import opened

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

NOT_DRAWN = (
    "return [...document.querySelectorAll('.chart')]"
    ".filter((chart) => chart.clientWidth && !chart.dataset.drawn && !chart.querySelector('.empty')).length"
)
TOO_WIDE = (
    "return [...document.querySelectorAll('figure')].filter((figure) => figure.clientWidth &&"
    " [...figure.querySelectorAll('svg')].some((svg) =>"
    " svg.getBoundingClientRect().right > figure.getBoundingClientRect().right)).length"
)
GROUND = "return getComputedStyle(document.querySelector('figure')).backgroundColor"


def test_paper_shows_every_picture_whole(browser: Chrome, study_folder: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, study_folder, theme="dark")
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(NOT_DRAWN) == 0)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    paper = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
    assert browser.execute_script("return document.querySelectorAll('figure svg').length") > 10
    assert browser.execute_script(TOO_WIDE) == 0
    assert browser.execute_script(GROUND) == "rgb(255, 255, 255)"
