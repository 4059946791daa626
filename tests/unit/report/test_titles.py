"""Every figure that has a title is there where the title says so."""

from __future__ import annotations

import re

from outlier_moe.report.explorer import ON_SLIDERS
from outlier_moe.report.page import ASSETS
from outlier_moe.tables.comparison import FIGURES
from outlier_moe.tables.schemas import ModelComparison
from outlier_moe.tables.titles import COMPARED


def test_every_figure_is_a_column_of_the_comparison() -> None:
    assert set(COMPARED) <= set(ModelComparison.column_names())
    assert set(FIGURES) < set(COMPARED)


def test_the_page_computes_every_figure_of_its_sliders() -> None:
    [computed] = re.findall(r"return \{\s+(n_systematic:.*?)\};", (ASSETS / "figures.js").read_text(), re.DOTALL)
    assert set(re.findall(r"^\s*(\w+):", computed, re.MULTILINE)) == set(ON_SLIDERS)
