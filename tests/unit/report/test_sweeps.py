"""The sweeps in the report: pictures and tables of each, and the answers in words."""

from __future__ import annotations

import json

import pytest

from outlier_moe.plots.saving import themed
from outlier_moe.plots.sweep import PANELS, sweep_charts
from outlier_moe.report.sweeps import Sweep, sweep_pictures, sweep_tables
from tests.swept_tables import made_up_sweep


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("single"), n_seeds=1, diverges=False)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("repeated"), n_seeds=3, diverges=True)


@pytest.mark.parametrize(("name", "n_seeds", "diverges"), [("single", 1, False), ("repeated", 3, True)])
def test_every_picture_is_drawn(name: str, n_seeds: int, diverges: bool, request: pytest.FixtureRequest) -> None:
    tables: Sweep = request.getfixturevalue(name)
    charts = sweep_charts(figures=tables["figures"], dynamics=tables["dynamics"])
    assert set(charts) == {*PANELS, "dynamics"}
    rows = json.loads(json.loads(themed(charts["ranks"], "light"))["data"]["values"])
    assert {row["moment"] for row in rows} == {"end", "matched"}
    assert {row["n_seeds"] for row in rows if row["scale"] == "w16"} == {n_seeds}
    crosses = {(row["scale"], row["optimizer"], row["n_seeds"]) for row in rows if row["is_diverged"]}
    assert crosses == ({("w8", "muon", 1)} if diverges else set())
    steps = json.loads(json.loads(themed(charts["dynamics"], "dark"))["data"]["values"])
    assert {row["step"] for row in steps} == {0, 5, 10} and {row["scale"] for row in steps} == {"w16"}


def test_the_text_says_the_answers_and_what_they_rest_on(repeated: Sweep) -> None:
    [group] = sweep_pictures({"scale_sweep": repeated})
    assert group.text.startswith("12 runs (3 seeds), 1 diverged and are in no comparison.")
    assert "adamw -0.15 per doubling of the parameters" in group.text
    assert "a better one may lie beyond: muon at w16 (the highest, 0.1)." in group.text
    assert "adamw less muon" in group.text and "at matched loss" in group.text
    # Two seeds have a run of both at each of two scales.
    assert "tested by 4 pairs (2 seeds at 2 scales)" in group.text
    assert "by whole seeds alone no p-value below 0.5 could be had" in group.text
    assert "two checkpoints, up to 5 steps apart" in group.text
    assert [picture.id for picture in group.pictures][0] == "scale_sweep-performance"


def test_without_a_sweep_the_report_is_silent_and_of_one_seed_it_says_so(single: Sweep) -> None:
    assert sweep_pictures({}) == [] and sweep_tables({}) == []
    [group] = sweep_pictures({"lm_scale_sweep": single})
    assert "one seed, no repetition" in group.text
    shown = {table.id: table for table in sweep_tables({"lm_scale_sweep": single})}
    assert set(shown) == {f"lm_scale_sweep-{name}" for name in ("summary", "trends", "comparisons", "runs")}
    assert len(shown["lm_scale_sweep-summary"].rows) == 4


def test_of_a_single_scale_only_the_steps_are_drawn(single: Sweep) -> None:
    of_one = {name: of.filter(scale="w16") if "scale" in of.columns else of for name, of in single.items()}
    [group] = sweep_pictures({"lm_scale_sweep": of_one})
    assert [picture.id for picture in group.pictures] == ["lm_scale_sweep-dynamics"]
