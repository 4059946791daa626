"""The sweeps in the report: pictures and tables of each, and the answers in words."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import polars as pl
import pytest

from outlier_moe.plots.saving import themed
from outlier_moe.plots.sweep import PANELS, sweep_charts
from outlier_moe.report.sweeps import Sweep, sweep_pictures, sweep_tables
from outlier_moe.scale_sweep.figures import SweptRun
from outlier_moe.scale_sweep.summary import summarise_sweep

SIZES = {"w8": 1000, "w16": 4000}


def made_up_sweep(folder: Path, *, n_seeds: int, diverges: bool) -> Sweep:
    """Tables of a sweep whose ranks fall with size under AdamW alone."""
    runs = []
    for (scale, size), optimizer, seed in product(SIZES.items(), ("adamw", "muon"), range(n_seeds)):
        place = folder / scale / optimizer / str(seed)
        place.mkdir(parents=True)
        diverged_at = 7 if diverges and (scale, optimizer, seed) == ("w8", "muon", 0) else None
        facts = {"n_parameters": size, "d_model": 8, "n_layers": 1, "n_steps": 10, "diverged_at": diverged_at}
        facts |= {"batch_size": 4, "n_accumulate": 1, "optimizer_lr": 0.1, "optimizer_weight_decay": 0.1}
        facts |= {"time_training_s": 1.0, "step_time_s": 0.01 * (1 + seed)}
        (place / "run.json").write_text(json.dumps(facts))
        rank = 0.9 - (size / 10_000 if optimizer == "adamw" else 0) + seed / 1000
        rows = [
            (step, metric, of, value)
            for step in (0, 5, 10)
            for metric, of, value in (
                ("loss_nats", "train", 2 - step / 10 - seed / 100),
                ("weight_effective_rank_share", "q_proj", rank + step / 1000),
                ("activation_hoyer", "ffn", 0.3 + seed / 100),
            )
        ]
        schema = {"step": pl.Int64, "metric": pl.String, "place": pl.String, "value": pl.Float64}
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(place / "metrics.parquet")
        runs.append(SweptRun(scale, optimizer, seed, place, place / "metrics.parquet"))
    return summarise_sweep(runs)._asdict()


@pytest.mark.parametrize(("n_seeds", "diverges"), [(1, False), (3, True)])
def test_every_picture_is_drawn(n_seeds: int, diverges: bool, tmp_path: Path) -> None:
    tables = made_up_sweep(tmp_path, n_seeds=n_seeds, diverges=diverges)
    charts = sweep_charts(figures=tables["figures"], dynamics=tables["dynamics"])
    assert set(charts) == {*PANELS, "dynamics"}
    rows = json.loads(json.loads(themed(charts["ranks"], "light"))["data"]["values"])
    assert {row["moment"] for row in rows} == {"end", "matched"}
    assert {row["n_seeds"] for row in rows if row["scale"] == "w16"} == {n_seeds}
    crosses = {(row["scale"], row["optimizer"], row["n_seeds"]) for row in rows if row["is_diverged"]}
    assert crosses == ({("w8", "muon", 1)} if diverges else set())
    steps = json.loads(json.loads(themed(charts["dynamics"], "dark"))["data"]["values"])
    assert {row["step"] for row in steps} == {0, 5, 10} and {row["scale"] for row in steps} == {"w16"}


def test_the_text_says_the_answers_and_what_they_rest_on(tmp_path: Path) -> None:
    [group] = sweep_pictures({"scale_sweep": made_up_sweep(tmp_path, n_seeds=3, diverges=True)})
    assert group.text.startswith("12 runs (3 seeds), 1 diverged and are in no comparison.")
    assert "adamw -0.15 per doubling of the parameters" in group.text
    assert "adamw less muon" in group.text and "at matched loss" in group.text
    assert [picture.id for picture in group.pictures][0] == "scale_sweep-performance"


def test_without_a_sweep_the_report_is_silent_and_of_one_seed_it_says_so(tmp_path: Path) -> None:
    assert sweep_pictures({}) == [] and sweep_tables({}) == []
    tables = made_up_sweep(tmp_path, n_seeds=1, diverges=False)
    [group] = sweep_pictures({"lm_scale_sweep": tables})
    assert "one seed, no repetition" in group.text
    shown = {table.id: table for table in sweep_tables({"lm_scale_sweep": tables})}
    assert set(shown) == {f"lm_scale_sweep-{name}" for name in ("summary", "trends", "comparisons", "runs")}
    assert len(shown["lm_scale_sweep-summary"].rows) == 4


def test_of_a_single_scale_only_the_steps_are_drawn(tmp_path: Path) -> None:
    tables = made_up_sweep(tmp_path, n_seeds=1, diverges=False)
    single = {name: of.filter(scale="w16") if "scale" in of.columns else of for name, of in tables.items()}
    [group] = sweep_pictures({"lm_scale_sweep": single})
    assert [picture.id for picture in group.pictures] == ["lm_scale_sweep-dynamics"]
