"""The pictures of a sweep: what is in them, at initialisation, of runs that diverged, and on which axes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from outlier_moe.plots.saving import save_chart, themed
from outlier_moe.plots.sweep import CHOSEN, dynamics_chart, size_chart, sweep_charts
from outlier_moe.plots.sweep_panels import DYNAMICS, PANELS, axis_kind
from outlier_moe.report.sweeps import Sweep
from outlier_moe.tables.sweeps import COST, FIGURES
from outlier_moe.tables.titles import SWEPT
from tests.swept_tables import made_up_sweep


class Drawn(NamedTuple):
    tables: Sweep
    specs: dict[str, dict[str, Any]]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return json.loads(self.specs[name]["data"]["values"])


def drawn(tables: Sweep) -> Drawn:
    """The pictures of a sweep, each held to Vega-Lite's schema."""
    charts = sweep_charts(figures=tables["figures"], dynamics=tables["dynamics"])
    return Drawn(tables, {name: json.loads(themed(chart, "light")) for name, chart in charts.items()})


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(made_up_sweep(tmp_path_factory.mktemp("single"), n_seeds=1, diverges=False))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(made_up_sweep(tmp_path_factory.mktemp("repeated"), n_seeds=3, diverges=True))


def test_every_figure_has_a_title() -> None:
    assert set(SWEPT) == {*FIGURES, COST}
    assert "n_systematic" in PANELS["outliers"] and "n_systematic" in DYNAMICS
    assert "generalisation_gap_nats" in DYNAMICS


@pytest.mark.parametrize(("name", "n_seeds", "diverges"), [("single", 1, False), ("repeated", 3, True)])
def test_every_picture_is_drawn(name: str, n_seeds: int, diverges: bool, request: pytest.FixtureRequest) -> None:
    shown: Drawn = request.getfixturevalue(name)
    assert set(shown.specs) == {*PANELS, "dynamics"}
    spec, rows = shown.specs["ranks"], shown.rows("ranks")
    assert len(spec["concat"]) == len(PANELS["ranks"])
    assert {row["moment"] for row in rows} == {"start", "end", "matched"}
    assert {row["n_seeds"] for row in rows if row["scale"] == "w16" and "n_seeds" in row} == {n_seeds}
    assert ("one seed" if n_seeds == 1 else "means of 2 to 3 seeds") in spec["title"]["text"][0]
    crosses = {(row["scale"], row["optimizer"], row["n_seeds"]) for row in rows if row.get("is_diverged")}
    assert crosses == ({("w8", "muon", 1)} if diverges else set())


def test_the_start_is_the_mean_of_all_runs_of_a_scale(repeated: Drawn) -> None:
    rows = repeated.rows("ranks")
    start = {row["scale"]: row["start"] for row in rows if row["figure"] == "weight_effective_rank" and "start" in row}
    known = repeated.tables["figures"].filter(moment="start", figure="weight_effective_rank")
    assert start == {scale: pytest.approx(known.filter(scale=scale)["value"].mean()) for scale in ("w8", "w16")}


def test_the_steps_of_every_scale_are_there_to_be_chosen(repeated: Drawn) -> None:
    spec, rows = repeated.specs["dynamics"], repeated.rows("dynamics")
    [choice] = spec["params"]
    assert choice["name"] == CHOSEN and choice["value"] == "w16" and choice["bind"]["options"] == ["w8", "w16"]
    assert "w16: 4,000 parameters" in spec["title"]["text"]["expr"]
    assert {row["step"] for row in rows} == {0, 5, 10} and {row["scale"] for row in rows} == {"w8", "w16"}
    of = {"figure": "train_loss_nats", "scale": "w16", "optimizer": "adamw", "step": 10}
    [row] = [row for row in rows if of.items() <= row.items()]
    assert (row["low"], row["y"], row["high"], row["n_seeds"]) == pytest.approx((0.98, 0.99, 1.0, 3))


def test_a_run_that_diverged_is_in_no_mean_and_has_a_line(repeated: Drawn) -> None:
    rows = repeated.rows("dynamics")
    muon = [row for row in rows if row["scale"] == "w8" and row["optimizer"] == "muon"]
    assert {row["n_seeds"] for row in muon if row["y"] is not None} == {2}
    assert {row["seed"] for row in muon if row["last"] is not None} == {0}


def test_a_run_that_diverged_moves_no_axis_and_lies_at_its_edge(repeated: Drawn) -> None:
    far = pl.when("is_diverged", figure="train_loss_nats", moment="end").then(1e11).otherwise("value")
    figures = repeated.tables["figures"].with_columns(value=far)
    spec = size_chart(figures, PANELS["performance"], name="performance").to_dict()
    [panel] = [one for one in spec["concat"] if one["title"]["text"] == SWEPT["train_loss_nats"].axis]
    scales = [layer["encoding"]["y"]["scale"] for layer in panel["layer"]]
    assert all(scale["clamp"] and scale["domain"][1] < 10 for scale in scales)
    assert panel["layer"][-1]["encoding"]["y"]["field"] == "last"
    assert "crosses: runs that diverged (at the edge: beyond it)" in spec["title"]["text"][1]
    assert "dotted: runs that diverged" in repeated.specs["dynamics"]["title"]["text"]["expr"]


def test_an_optimiser_has_one_colour_in_all_pictures(repeated: Drawn) -> None:
    bare = repeated.tables["figures"].filter((pl.col("figure") != "hoyer") | (pl.col("optimizer") != "adamw"))
    spec = size_chart(bare, ["hoyer"], name="sparsity").to_dict()
    colours = [layer["encoding"].get("color", {}) for layer in spec["concat"][0]["layer"]]
    assert [colour["scale"]["domain"] for colour in colours if "scale" in colour] == 4 * [["adamw", "muon"]]


def test_of_one_scale_there_is_no_choice(single: Drawn, tmp_path: Path) -> None:
    chart = dynamics_chart(single.tables["dynamics"].filter(scale="w8"))
    assert "params" not in chart.to_dict()
    save_chart(chart, {"png": tmp_path / "steps.png"})
    assert (tmp_path / "steps.png").stat().st_size > 10_000


def test_figures_far_apart_are_on_logarithmic_axes(single: Drawn) -> None:
    assert axis_kind("peak", [0.3, 1.2, 224.0]) == "log"
    assert axis_kind("kurtosis_of_feature_rms", [1.1, 1.3]) == "linear"
    assert axis_kind("n_systematic", [0.0, 40.0]) == axis_kind("excess_kurtosis", [-0.4, 55.0]) == "symlog"
    assert axis_kind("n_systematic", [0.0, 0.0]) == axis_kind("test_accuracy", [0.1, 0.9]) == "linear"
    far = pl.when((pl.col("figure") == "peak") & (pl.col("optimizer") == "muon")).then(224.0).otherwise("value")
    spec = size_chart(single.tables["figures"].with_columns(value=far), PANELS["outliers"], name="outliers").to_dict()
    scales = {one["title"]["text"]: one["layer"][2]["encoding"]["y"]["scale"]["type"] for one in spec["concat"]}
    assert scales["largest |x|, log axis"] == "log" and scales["excess kurtosis"] == "linear"
