"""The pictures of dense -> MoE are drawn for one pair and for two, and the boundary is where phase 1 ends."""

from __future__ import annotations

import json

import pytest

from outlier_moe.plots.saving import themed
from outlier_moe.plots.upcycling import upcycling_charts
from outlier_moe.report.upcycling import upcycling_pictures
from tests.upcycling_tables import BOUNDARY, made_up_tables


@pytest.mark.parametrize("pairs", [["simple"], ["simple", "smollm"]])
def test_pictures_are_drawn_with_the_boundary(pairs: list[str]) -> None:
    made = made_up_tables(pairs)
    charts = upcycling_charts(**{name: table for name, table in made.items() if name not in ("summary", "samples")})
    assert set(charts) == {"losses", "expert-load", "peaks", "kurtosis"}
    for name, chart in charts.items():
        spec = themed(chart, "light")
        assert (f'"datum": {BOUNDARY}' in spec) == (name != "expert-load")
        rows = json.loads(json.loads(spec)["data"]["values"])
        panels = {row.get("panel", row["pair"]) for row in rows}
        assert len(panels) == len(pairs)


def test_the_report_says_how_many_seeds_and_is_silent_without_the_experiment() -> None:
    [group] = upcycling_pictures(made_up_tables(["simple"]))
    assert "means over 2 seeds" in group.text
    assert [picture.id for picture in group.pictures][0] == "upcycling-losses"
    boundary, samples = group.tables
    assert [cell.text for cell in boundary.rows[0]][:6] == ["simple", "0", "dense", "5.6000", "5.6000", "0.000000"]
    assert [cell.text for cell in samples.rows[0]] == ["simple", "0", "dense", "2", "Once", " upon dense"]
    assert upcycling_pictures({}) == []
