"""The report in a real browser: its sliders against the filter, its names, its manners."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from outlier_moe.definitions.presets import presets
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.plots.labels import place_labels
from outlier_moe.statistics.comparison import ComparedModel, compare_models
from tests.browser.conftest import keep_picture, recording_of
from tests.reported_study import HOSTILE, MODELS, STUDY

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SETTINGS = [
    {"preset": "dettmers2022", "magnitude": 3.25, "layers": 0.5, "positions": 0.12, "side": 0},
    {"preset": "survey2025", "magnitude": 5.0, "layers": 0.37, "positions": 0.03, "side": 1},
    {"preset": "own_magnitude", "magnitude": 11.0, "layers": 0.75, "positions": 0.01, "side": 0},
    {"preset": "sun2024", "magnitude": 6.0, "layers": 0.25, "positions": 0.06, "side": 1},
]


def opened(browser: Chrome, folder: Path, *, theme: str = "light", width: int = 1280, fragment: str = "") -> None:
    """Open the report anew and wait until it has settled."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((folder / "index.html").as_uri() + fragment)
    settled(browser)


def settled(browser: Chrome) -> None:
    """Wait until every figure and picture of the sliders' setting is shown."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda page: page.execute_script("return document.body.dataset.settled") == "true")


def move_slider(browser: Chrome, name: str, value: float) -> None:
    """Move a slider by the arrow keys until it stands at a value."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = browser.find_element(By.ID, f"slider-{name}")
    wanted = browser.execute_script(
        "return JSON.parse(document.getElementById('study').textContent).stops[arguments[0]].indexOf(arguments[1])",
        name,
        value,
    )
    assert wanted >= 0, f"{value} is no stop of {name}"
    steps = wanted - int(slider.get_property("value") or 0)  # type: ignore[arg-type]
    slider.send_keys((Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT) * abs(steps))
    settled(browser)


def choose(browser: Chrome, identity: str, value: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    Select(browser.find_element(By.ID, identity)).select_by_value(value)
    settled(browser)


def shown_figures(browser: Chrome) -> dict[tuple[str, str], tuple[str, str]]:
    """(model, figure) -> (the value behind it, the text that is shown)."""
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#explorer-table td[data-figure]')]"
        ".map((cell) => [cell.dataset.model, cell.dataset.figure, cell.dataset.value, cell.textContent])"
    )
    return {(model, figure): (value, text) for model, figure, value, text in cells}


def judged(folder: Path, setting: dict[str, Any]) -> pl.DataFrame:
    """What filter_systematic and compare_models give at a setting, from the recordings."""
    study = {
        **STUDY,
        "magnitude": setting["magnitude"],
        "layer_fraction": setting["layers"],
        "position_fraction": setting["positions"],
    }
    chosen = [preset for preset in presets(study) if preset.name == setting["preset"]]
    models = []
    for name, (kind, total, active, _) in MODELS.items():
        recording = recording_of(folder, name)
        features = systematic_features(recording, chosen).filter("is_systematic")
        facts = {"model": name, "kind": kind, "family": "any", "total_params_b": total, "active_params_b": active}
        facts |= dict.fromkeys(["n_experts", "top_k", "routing"])
        models.append(ComparedModel(facts, recording, features))
    first_token = ("included", "excluded")[setting["side"]]
    return compare_models(models, chosen).models.filter(first_token=first_token)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting["preset"])
def test_every_number_equals_the_filter(browser: Chrome, study_folder: Path, setting: dict[str, Any]) -> None:
    opened(browser, study_folder)
    choose(browser, "explorer-preset", setting["preset"])
    choose(browser, "explorer-first", str(setting["side"]))
    definition = STUDY["filter_systematic"]["presets"][setting["preset"]]
    keys = {"magnitude": "magnitude", "layers": "layer_fraction", "positions": "position_fraction"}
    for name, key in keys.items():
        if definition["rule"] == "systematic" and key not in definition:
            move_slider(browser, name, setting[name])
    shown = shown_figures(browser)
    expected = judged(study_folder, setting)
    assert {model for model, _ in shown} == set(MODELS)
    for row in expected.iter_rows(named=True):
        for (model, figure), (value, text) in shown.items():
            # The pairs' peaks are not stored in the page.
            if model != row["model"] or (figure == "peak_largest" and definition.get("unit") == "feature_sequence"):
                continue
            if row[figure] is None:
                assert (value, text) == ("", "–"), (model, figure)
            else:
                assert float(value) == pytest.approx(row[figure], rel=1e-12), (model, figure)
                factor = 100 if "fraction" in figure or "share" in figure else 1
                assert float(text.replace(",", "")) == pytest.approx(factor * row[figure], abs=0.0501), (model, figure)
    assert any(row["n_systematic"] for row in expected.iter_rows(named=True)), "a setting that finds nothing"
    keep_picture(browser, f"sliders-{setting['preset']}.png")


def test_the_command_reproduces_the_setting(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    command = "return document.getElementById('explorer-command').textContent"
    # What the study was started with stays in the command.
    assert browser.execute_script(command) == "snakemake --config 'corpus=own text'"
    move_slider(browser, "magnitude", 5.0)
    move_slider(browser, "layers", 0.3)
    assert browser.execute_script(command) == "snakemake --config 'corpus=own text' magnitude=5 layer_fraction=0.3"


def test_no_network_and_no_complaint(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    draw_everything(browser)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.split(":", 1)[0] for url in urls} <= {"file", "data", "blob"}
    assert [url for url in urls if url.startswith("file:")] == [(study_folder / "index.html").as_uri()]
    assert [entry["message"] for entry in browser.get_log("browser")] == []


# Against size there is nothing to see of a single scale.
@pytest.mark.parametrize(("section", "n_charts"), [("upcycling", 4), ("scale_sweep", 5), ("lm_scale_sweep", 1)])
def test_the_experiments_pictures_are_drawn(browser: Chrome, study_folder: Path, section: str, n_charts: int) -> None:
    opened(browser, study_folder)
    draw_everything(browser)
    marks = (
        "return [...document.querySelectorAll(`[data-chart^=${arguments[0]}-] svg.marks`)]"
        ".map((chart) => chart.querySelectorAll('.role-mark path').length)"
    )
    found = browser.execute_script(marks, section)
    assert len(found) == n_charts
    assert min(found) > 0


def test_the_sweeps_section_says_what_it_rests_on(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    draw_everything(browser)
    shown = browser.execute_script("return document.body.innerText")
    assert "12 runs (3 seeds), 1 diverged (muon at w8)" in shown
    assert "muon at w16 (at its highest, 0.1)" in shown
    crosses = (
        "return document.querySelectorAll('[data-chart=scale_sweep-ranks] path[aria-label*=\"last measured\"]').length"
    )
    assert browser.execute_script(crosses) == 7, "one in each panel"
    lines = (
        "return [...document.querySelectorAll('[data-chart=scale_sweep-ranks] .mark-line.role-mark path')]"
        ".filter((line) => line.getAttribute('d')?.includes('L')).length"
    )
    assert browser.execute_script(lines) == 7 * 2 * 2, "in each panel both optimisers, at the end and at matched loss"
    for section in ("scale_sweep-ranks", "lm_scale_sweep-dynamics"):
        keep_picture(browser, f"{section}.png", of=f"[data-chart={section}]")


def test_the_steps_of_another_scale_can_be_chosen(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    draw_everything(browser)
    chart = "document.querySelector('[data-chart=scale_sweep-dynamics]')"
    title = f"return {chart}.textContent"
    assert "w16: 4,000 parameters" in browser.execute_script(title)
    choose = f"const choice = {chart}.querySelector('select'); choice.value = 'w8';"
    browser.execute_script(
        f"{choose} choice.dispatchEvent(new Event('input')); choice.dispatchEvent(new Event('change'))"
    )
    settled(browser)
    assert "w8: 1,000 parameters" in browser.execute_script(title)
    diverged = f"return {chart}.querySelectorAll('path[aria-label*=\"diverged\"]').length"
    assert browser.execute_script(diverged) > 0, "the run that diverged is at this scale"


def draw_everything(browser: Chrome) -> None:
    """Make the window as tall as the page, so that every chart is drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = browser.execute_script("return window.innerWidth")
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    waiting = (
        "return [...document.querySelectorAll('.chart')]"
        ".filter((chart) => chart.clientWidth && !chart.dataset.drawn && !chart.querySelector('.empty')).length"
    )
    WebDriverWait(browser, 60).until(lambda page: page.execute_script(waiting) == 0)
    settled(browser)


@pytest.mark.parametrize("width", [1280, 390])
def test_names_overlap_nowhere(browser: Chrome, study_folder: Path, width: int) -> None:
    opened(browser, study_folder, width=width)
    draw_everything(browser)
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].map((chart) =>"
        " [...chart.querySelectorAll('.mark-text.role-mark text')].map((text) => {"
        " const box = text.getBoundingClientRect();"
        " return [text.textContent, box.left, box.top, box.right, box.bottom]; }))"
    )
    assert sum(len(names) for names in charts) > 20
    for names in charts:
        for (one, *a), (other, *b) in combinations(names, 2):
            # The browser's boxes have a line's full height; letters fill the middle of it.
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] - 2 <= b[1] or b[3] - 2 <= a[1]
            assert apart, (one, other)


def test_pictures_have_a_role_a_name_and_a_legend_that_fits(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder, width=390)
    draw_everything(browser)
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg.marks')].map((svg) => {"
        " const told = svg.closest('[role]'), right = svg.closest('.chart').getBoundingClientRect().right;"
        " const names = [...svg.querySelectorAll('.role-legend text')];"
        " return [told.getAttribute('role'), told.getAttribute('aria-label'),"
        " Math.max(-1000, ...names.map((name) => name.getBoundingClientRect().right - right))]; })"
    )
    assert len(charts) > 20
    for role, name, beyond in charts:
        assert role == "graphics-document" and name
        assert beyond <= 0, name


def test_strings_of_models_and_texts_stay_strings(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    draw_everything(browser)
    assert "taken" not in browser.title
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    tokens = browser.execute_script("return [...document.querySelectorAll('.token')].map((token) => token.textContent)")
    assert HOSTILE in tokens


def test_tooltips_stay_strings(browser: Chrome, study_folder: Path) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, study_folder)

    def tooltip(page: Chrome) -> str:
        # Again at each look: a chart that is drawn anew under the pointer shows none until it moves.
        mark = page.find_element(By.CSS_SELECTOR, "#explorer-scatter .mark-symbol.role-mark path")
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
        ActionChains(page).move_to_element_with_offset(mark, -40, -40).move_to_element(mark).perform()
        return page.execute_script("return document.getElementById('vg-tooltip-element')?.textContent ?? ''")

    ignored = [StaleElementReferenceException]
    WebDriverWait(browser, 60, ignored_exceptions=ignored).until(lambda page: HOSTILE in tooltip(page))
    assert "taken" not in browser.title


def test_dark_and_light_and_narrow(browser: Chrome, study_folder: Path) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    grounds = {}
    for theme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        opened(browser, study_folder, theme=theme, width=width)
        grounds[theme] = browser.execute_script(ground)
        draw_everything(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        keep_picture(browser, f"report-{theme}-{width}.png")
    assert grounds["light"] != grounds["dark"]


def test_the_theme_can_be_chosen(browser: Chrome, study_folder: Path) -> None:
    from selenium.webdriver.common.by import By

    opened(browser, study_folder, theme="light")
    button = browser.find_element(By.ID, "theme")
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    button.click()
    settled(browser)
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    assert browser.execute_script("return document.getElementById('explorer-scatter').dataset.drawn") == "dark"
    button.click()
    settled(browser)
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == before


def test_models_can_be_chosen_and_tables_sorted(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    click = "document.querySelector(arguments[0]).click()"
    browser.execute_script(click, "#model-choice [data-choose=moe]")
    settled(browser)
    assert {model for model, _ in shown_figures(browser)} == {"small-moe", "large-moe"}
    browser.execute_script(click, "#explorer-table th:nth-child(3) button")
    column = (
        "return [...document.querySelectorAll('#explorer-table tbody tr')]"
        ".map((row) => Number(row.cells[2].dataset.sort))"
    )
    counts = browser.execute_script(column)
    assert counts == sorted(counts, reverse=True)


def test_a_chart_of_nothing_says_why(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder)
    said = "return document.querySelector('#explorer-' + arguments[0] + ' .empty')?.textContent ?? null"
    marks = "return document.querySelectorAll('#explorer-scatter .mark-symbol.role-mark path').length"
    nothing = {
        ("survey2025", "peak_largest"): "largest |x| of these features",
        ("dettmers2022", "n_pairs"): "(feature, sequence) pairs",
        ("sun2024", "position_fraction_mean"): "positions affected, mean (%)",
    }
    for (preset, figure), title in nothing.items():
        choose(browser, "explorer-preset", preset)
        choose(browser, "explorer-y", figure)
        assert title in browser.execute_script(said, "scatter")
    choose(browser, "explorer-y", "n_systematic")
    assert browser.execute_script(said, "scatter") is None
    assert browser.execute_script(marks) > 0
    choose(browser, "explorer-preset", "dettmers2022")
    browser.execute_script("document.querySelector('#model-choice [data-choose=none]').click()")
    settled(browser)
    assert [browser.execute_script(said, chart) for chart in ("scatter", "curves")] == ["No model is chosen."] * 2


def test_a_setting_is_kept_in_the_address(browser: Chrome, study_folder: Path) -> None:
    opened(browser, study_folder, fragment="#preset=survey2025&magnitude=4.5&layers=0.4&positions=0.1&side=1")
    state = browser.execute_script("const {models, ...rest} = window.outlierReport.state; return rest")
    assert (state["preset"], state["magnitude"], state["side"]) == ("survey2025", 4.5, 1)
    opened(browser, study_folder, fragment="#preset=nonsense&magnitude=4.4")
    state = browser.execute_script("const {models, ...rest} = window.outlierReport.state; return rest")
    assert (state["preset"], state["magnitude"]) == ("dettmers2022", 6.0)


@pytest.mark.parametrize("seed", range(4))
def test_names_have_the_same_places_as_in_python(browser: Chrome, study_folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 18
    x, y = random.uniform(0, 400, n), random.uniform(0, 260, n)
    names = [f"model-{'x' * int(random.integers(1, 9))}{k}" for k in range(n)]
    bars = np.stack([x, y - 14, x, y + 14], axis=1)
    expected = place_labels(x, y, names, width=400.0, height=260.0, bars=bars, dearest=120.0)
    opened(browser, study_folder)
    found = browser.execute_script(
        "return window.outlierReport.placeLabels(arguments[0], arguments[1], arguments[2])"
        ".map((place) => place && [place.x, place.y, place.hasLeader])",
        [{"x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)],
        names,
        {"width": 400, "height": 260, "bars": bars.tolist(), "dearest": 120},
    )
    for name, place, there in zip(names, expected, found, strict=True):
        if place is None:
            assert there is None, name
        else:
            assert there == [pytest.approx(place.x), pytest.approx(place.y), place.has_leader], name
