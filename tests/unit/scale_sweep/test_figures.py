"""Figures at the start, at matched loss and at the end; trends and differences of made-up sweeps."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from dataframely.exc import ValidationError
from scipy import stats

from outlier_moe.cli import main
from outlier_moe.scale_sweep.answers import comparisons as comparisons_of_pairs
from outlier_moe.scale_sweep.answers import pairs_of, trends
from outlier_moe.scale_sweep.figures import SweptRun, figures_over_steps
from outlier_moe.scale_sweep.moments import at_moments, target_loss
from outlier_moe.scale_sweep.summary import summarise_sweep
from outlier_moe.scale_sweep.terminal_table import TABLE, for_terminal, show_summary
from outlier_moe.tables.sweeps import FIGURES, SweepCheckpoint, SweepSummary


def steps(losses: list[float | None], **figures: list[float | None]) -> pl.DataFrame:
    return pl.DataFrame({"step": [10 * i for i in range(len(losses))], "train_loss_nats": losses, **figures})


def test_matched_figures_lie_between_two_checkpoints() -> None:
    quick, slow = steps([2.0, 1.0, 0.5], hoyer=[0.1, 0.3, 0.4]), steps([2.0, 1.8, 1.25], hoyer=[0.1, 0.2, 0.3])
    target = target_loss([quick, slow])
    assert target == 1.25
    found = at_moments(quick, target)
    assert found["matched"].values == pytest.approx({"train_loss_nats": 1.25, "hoyer": 0.25})
    # They say from how far apart they are guessed.
    assert found["matched"][3:] == (7.5, 10, None)
    assert (found["matched"].lowest["hoyer"], found["matched"].highest["hoyer"]) == (0.1, 0.3)
    assert found["matched"].lowest["train_loss_nats"] == found["matched"].highest["train_loss_nats"] == 1.25
    assert (found["start"].step, found["start"].gap_steps, found["end"].values["hoyer"]) == (0, 0, 0.4)
    assert at_moments(slow, target)["matched"] == (3 * ({"train_loss_nats": 1.25, "hoyer": 0.3},) + (20, 0, None))


def test_a_run_that_diverged_ends_where_its_loss_was_a_number_last() -> None:
    diverged = steps([2.0, 90.0, None], hoyer=[0.1, 0.2, None], test_accuracy=[0.1, None, None])
    end = at_moments(diverged, 1.0)["end"]
    assert end.values == {"train_loss_nats": 90.0, "hoyer": 0.2, "test_accuracy": None}
    assert (end.step, end.reason) == (10, None)
    nothing = at_moments(steps([None, None], hoyer=[None, None]), None)["end"]
    assert set(nothing.values.values()) == {None} and nothing.reason is not None


def test_a_loss_that_rises_again_is_matched_where_it_was_first() -> None:
    rising = steps([2.0, 1.0, 1.6], hoyer=[0.0, 1.0, 2.0])
    assert at_moments(rising, 1.5)["matched"].values["hoyer"] == pytest.approx(0.5)
    assert target_loss([rising, steps([2.0, 1.2, 0.9])]) == 1.0


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([2.0, None, None], "never reached"),
        ([2.0, 1.9, 1.8], "never reached"),
        # Its figures at the start would be those of another loss.
        ([1.4, 1.3, 1.2], "from the start"),
        ([1.5, 1.6, 1.7], "from the start"),
    ],
)
def test_what_is_not_there_has_no_figures_there_and_says_why(losses: list[float | None], reason: str) -> None:
    found = at_moments(steps(losses, hoyer=[1.0, 2.0, 3.0]), 1.5)["matched"]
    assert found[:5] == 3 * ({"train_loss_nats": None, "hoyer": None},) + (None, None)
    assert found.reason is not None and reason in found.reason
    assert target_loss([]) is None


def test_a_run_that_never_learns_moves_no_loss_that_others_are_matched_at() -> None:
    stuck, learnt = steps([2.3, 2.5, None]), [steps([2.3, 1.0, 0.5]), steps([2.3, 1.8, 1.2])]
    assert target_loss([stuck, *learnt]) == 1.2
    assert target_loss([stuck]) is None
    found = at_moments(stuck, None)["matched"]
    assert found.reason is not None and "stayed at its start" in found.reason


def comparisons(figures: pl.DataFrame) -> pl.DataFrame:
    return comparisons_of_pairs(pairs_of(figures))


SIZES = {"small": 1_000_000, "medium": 4_000_000, "large": 16_000_000}


def made_up(value: Any, *, seeds: int = 4) -> pl.DataFrame:
    random = np.random.default_rng(0)
    rows = [
        {
            "scale": scale,
            "n_parameters": size,
            "optimizer": optimizer,
            "seed": seed,
            "moment": "end",
            "figure": "hoyer",
            "value": value(np.log2(size), optimizer) + 0.01 * random.normal(),
        }
        for (scale, size), optimizer, seed in product(SIZES.items(), ("adamw", "muon"), range(seeds))
    ]
    return pl.DataFrame(rows)


def test_a_trend_is_its_slope_per_doubling_whatever_its_direction() -> None:
    table = trends(made_up(lambda size, optimizer: 0.3 * size if optimizer == "muon" else -0.2 * size))
    rows = {row["optimizer"]: row for row in table.to_dicts()}
    for optimizer, slope in (("muon", 0.3), ("adamw", -0.2)):
        row = rows[optimizer]
        assert row["slope"] == pytest.approx(slope, abs=0.01)
        assert row["low"] <= row["slope"] <= row["high"]
        assert row["p_value"] < 0.01
        assert row["q_value"] >= row["p_value"]
        assert (row["n_scales"], row["n_seeds"]) == (3, 4)
    assert rows["muon"]["effect"] > 0.7 > -0.7 > rows["adamw"]["effect"]
    assert (rows["muon"]["verdict"], rows["adamw"]["verdict"]) == ("higher", "lower")


def test_no_trend_is_found_where_there_is_none() -> None:
    table = trends(made_up(lambda size, optimizer: 0.0))
    assert table["p_value"].min() > 0.05  # type: ignore[operator]
    assert ((table["low"] < 0) & (table["high"] > 0)).all()


def test_differences_are_paired_by_seed_and_take_no_side() -> None:
    table = comparisons(made_up(lambda size, optimizer: size + (0.5 if optimizer == "muon" else 0.0)))
    assert table["scale"].to_list() == [*SIZES, "all"]
    pooled = table.row(3, named=True)
    assert pooled["difference"] == pytest.approx(-0.5, abs=0.02)
    assert (pooled["n_pairs"], pooled["effect"]) == (12, -1.0)
    assert pooled["p_value"] == pytest.approx(2 / 2**12)
    assert table["verdict"].to_list() == [*["too_few"] * 3, "lower"]
    # Of four pairs, or four seeds, no two-sided p-value is below 1/8.
    assert table["p_value"].to_list()[:3] == [0.125] * 3
    assert table["p_value_of_seeds"].to_list() == [None, None, None, 0.125]
    assert ((table["low"] <= table["difference"]) & (table["difference"] <= table["high"])).all()


def several(*figures: str, seeds: int) -> pl.DataFrame:
    """Figures by which optimisers and sizes differ, the more so the later they are named."""
    tables = [
        made_up(lambda size, optimizer, by=by: by * size * (optimizer == "muon"), seeds=seeds).with_columns(
            figure=pl.lit(figure), value=pl.col("value") + 0.001 * by
        )
        for by, figure in enumerate(figures)
    ]
    return pl.concat(tables)


def test_a_test_that_cannot_find_anything_has_no_q_value_and_dilutes_no_other() -> None:
    table = comparisons(several("hoyer", "peak", seeds=3))
    single, pooled = table.filter(pl.col("scale") != "all"), table.filter(scale="all")
    assert single["p_value"].to_list()[-3:] == [0.25] * 3 and single["q_value"].null_count() == len(single)
    assert single["reason"].unique().to_list() == ["3 pairs cannot give p below 0.25"]
    assert single["family"].null_count() == len(single)
    expected = stats.false_discovery_control(pooled["p_value"].to_numpy())
    assert pooled["q_value"].to_list() == pytest.approx(expected.tolist())
    assert pooled["reason"].null_count() == len(pooled)
    # Two scales and three seeds can be ordered in 20 ways.
    few = trends(several("hoyer", "peak", seeds=3).filter(pl.col("scale") != "large"))
    assert few["reason"].unique().to_list() == ["6 runs cannot give p below 0.1"]
    assert few["smallest_p_value"].to_list() == pytest.approx([0.1] * 4) and few["q_value"].null_count() == 4


def test_single_scales_all_scales_and_the_cost_are_families_apart() -> None:
    figures = several("hoyer", "step_time_s", "peak", seeds=6)
    table = comparisons(figures)
    assert table["q_value"].null_count() == 0
    for (family,), tests in table.group_by("family"):
        expected = stats.false_discovery_control(tests["p_value"].to_numpy())
        assert tests["q_value"].to_list() == pytest.approx(expected.tolist()), family
    assert table.group_by("family").len().sort("family").rows() == [
        ("cost, all scales", 1),
        ("cost, one scale", 3),
        ("figures, all scales", 2),
        ("figures, one scale", 6),
    ]
    # What the machine costs decides about nothing else.
    for answered in (comparisons, trends):
        without = answered(figures.filter(pl.col("figure") != "step_time_s"))
        assert answered(figures).filter(pl.col("figure") != "step_time_s").equals(without)
    assert trends(figures)["family"].unique().sort().to_list() == ["cost, all scales", "figures, all scales"]


def test_pairs_that_do_not_differ_do_not_help_a_test() -> None:
    table = made_up(lambda size, optimizer: 0.0, seeds=6).filter(scale="small")
    counted = table.with_columns(value=pl.when(seed=0, optimizer="muon").then(1.0).otherwise(0.0))
    [row] = comparisons(counted).to_dicts()
    assert (row["n_pairs"], row["q_value"], row["smallest_p_value"]) == (6, None, 1.0)
    assert row["reason"] == "1 pair that differs cannot give p below 1"


def test_a_difference_lies_in_its_interval_where_a_seed_diverged_at_one_scale() -> None:
    whole = made_up(lambda size, optimizer: 0.1 * size if optimizer == "muon" else 0.0)
    is_missing = (pl.col("seed") == 1) & (pl.col("scale") == "small")
    table = comparisons(whole.filter(~is_missing))
    [pooled] = table.filter(scale="all").to_dicts()
    assert pooled["low"] <= pooled["difference"] <= pooled["high"]
    assert (pooled["n_seeds"], pooled["n_pairs"]) == (3, 9)
    [there] = comparisons(whole.filter(pl.col("seed") != 1)).filter(scale="all").to_dicts()
    assert pooled | {"q_value": None} == there | {"q_value": None}


def test_pairs_of_no_seed_at_every_scale_have_a_difference_and_no_interval() -> None:
    table = made_up(lambda size, optimizer: size, seeds=2)
    apart = table.filter((pl.col("scale") == "small") == (pl.col("seed") == 0))
    [pooled] = comparisons(apart).filter(scale="all").to_dicts()
    assert (pooled["n_seeds"], pooled["n_pairs"], pooled["low"]) == (0, 3, None)
    assert pooled["reason"] == "no seed has a pair at every scale; 3 pairs cannot give p below 0.25"


def test_scales_that_differ_in_heads_alone_have_no_trend() -> None:
    alike = made_up(lambda size, optimizer: size).with_columns(n_parameters=pl.lit(1_000_000))
    assert trends(alike).select("slope", "low", "high", "effect", "p_value", "q_value").null_count().row(0) == (2,) * 6
    assert trends(alike)["reason"].unique().to_list() == ["all scales have as many parameters"]
    # Two sizes are enough, also where one of them is that of two scales.
    two = made_up(lambda size, optimizer: 0.1 * size).with_columns(
        pl.col("n_parameters").replace({16_000_000: 4_000_000})
    )
    assert trends(two)["slope"].is_not_null().all()


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_what_is_not_finite_counts_as_missing(value: float | None) -> None:
    whole = made_up(lambda size, optimizer: 0.1 * size)
    is_odd = (pl.col("seed") == 1) & (pl.col("scale") == "small") & (pl.col("optimizer") == "muon")
    odd = whole.with_columns(value=pl.when(is_odd).then(pl.lit(value, pl.Float64)).otherwise("value"))
    assert trends(odd).equals(trends(whole.filter(~is_odd)))
    assert comparisons(odd).equals(comparisons(whole.filter(~is_odd)))
    nowhere = whole.with_columns(value=pl.lit(value, pl.Float64))
    assert trends(nowhere).is_empty() and comparisons(nowhere).is_empty()


def test_a_measure_that_is_not_finite_is_no_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path, "adamw", 0, [2.0, 1.0, 0.5])
    metrics = pl.read_parquet(run.metrics)
    metrics.with_columns(value=pl.when(place="q_proj").then(np.nan).otherwise("value")).write_parquet(run.metrics)
    figures = summarise_sweep([run]).figures.filter(figure="weight_effective_rank")
    assert figures["value"].null_count() == len(figures)


def test_one_seed_or_one_scale_has_no_interval_and_says_why() -> None:
    single = made_up(lambda size, optimizer: size, seeds=1)
    assert trends(single)["low"].null_count() == 2
    few = "fewer than two seeds: there is no spread to see; 3 runs cannot give p below 0.33"
    assert trends(single)["reason"].unique().to_list() == [few]
    assert trends(single.filter(scale="small"))["reason"].unique().to_list() == ["one scale only"]
    assert comparisons(single.filter(optimizer="muon")).is_empty()


def write_run(
    folder: Path, optimizer: str, seed: int, losses: list[float | None], *, edge: str | None = None
) -> SweptRun:
    diverged_at = 15 if losses[-1] is None else None
    folder = folder / f"{optimizer}{seed}"
    folder.mkdir()
    facts = {
        "n_parameters": 1000,
        "d_model": 8,
        "n_layers": 2,
        "n_steps": 20,
        "diverged_at": diverged_at,
        "batch_size": 4,
        "n_accumulate": 1,
        "optimizer_lr": 0.1,
        "optimizer_grid_edge": edge,
        "optimizer_weight_decay": 0.1,
        "time_training_s": 5.0,
        "step_time_s": 0.02,
        "data": {"n_classes": 4},
    }
    (folder / "run.json").write_text(json.dumps(facts))
    pl.DataFrame({"learning_rate": [0.1, 0.05], "gradient_norm": [2.0, 0.5]}).write_parquet(
        folder / "training_history.parquet"
    )
    rows = [(10 * i, "loss_nats", "train", None, loss) for i, loss in enumerate(losses)]
    rows += [(0, "weight_effective_rank_share", place, 0, rank) for place, rank in (("q_proj", 0.5), ("fc1", 0.7))]
    rows += [(0, "time_s", "measures", None, 0.25), (10, "time_s", "measures", None, 0.5)]
    schema = {"step": pl.Int64, "metric": pl.String, "place": pl.String, "layer": pl.Int64, "value": pl.Float64}
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "metrics.parquet")
    return SweptRun("tiny", optimizer, seed, folder, folder / "metrics.parquet")


def test_a_diverged_run_is_shown_and_compares_with_nothing(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "adamw", seed, [2.0, 1.0, 0.5 + seed / 10]) for seed in (0, 1)]
    runs += [write_run(tmp_path, "sgd", 0, [2.0, 9.0, None]), write_run(tmp_path, "sgd", 1, [2.0, 1.5, 1.2])]
    tables = summarise_sweep(runs)
    summary = {row["optimizer"]: row for row in tables.summary.to_dicts()}
    assert (summary["sgd"]["n_seeds"], summary["sgd"]["n_diverged"], summary["adamw"]["n_diverged"]) == (2, 1, 0)
    assert summary["sgd"]["train_loss_nats"] == pytest.approx(1.2)
    assert summary["adamw"]["target_loss_nats"] == pytest.approx(1.2)
    assert [summary[name][of] for name in ("adamw", "sgd") for of in ("n_matched", "step_matched")] == [2, 8, 1, 20]
    assert tables.runs["diverged_at"].to_list() == [None, None, 15, None]
    assert tables.runs["time_measures_s"].to_list() == [0.75] * 4
    shown = tables.figures.filter(optimizer="sgd", seed=0, moment="start", figure="weight_effective_rank")
    assert shown["value"].to_list() == pytest.approx([0.6])
    assert set(TABLE) <= set(for_terminal(tables.summary).columns)
    assert tables.comparisons.filter(figure="train_loss_nats", moment="end")["n_pairs"].to_list() == [1]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_part_of_the_images_has_its_loss_and_its_accuracy(part: str) -> None:
    rows = [(0, metric, part, None, 0.25) for metric in ("loss_nats", "accuracy")]
    schema = {"step": pl.Int64, "metric": pl.String, "place": pl.String, "layer": pl.Int64, "value": pl.Float64}
    found = figures_over_steps(pl.DataFrame(rows, schema=schema, orient="row"))
    assert found.select(f"{part}_loss_nats", f"{part}_accuracy").rows() == [(0.25, 0.25)]


def test_of_the_gaps_at_matched_loss_the_widest_is_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "muon", 0, [2.0, 1.3, 0.4]), write_run(tmp_path, "muon", 1, [2.0, 1.2, 0.4])]
    runs.append(write_run(tmp_path, "sgd", 0, [2.0, 1.5, 1.2]))
    assert summarise_sweep(runs).summary["gap_steps_matched"].to_list() == [10, 0]


def swept(folder: Path, losses: dict[str, list[float | None]]) -> list[SweptRun]:
    """Two runs of each optimiser, whose weights' rank is a hundredth of the training loss, and of Muon's 0.1 more."""
    runs = [write_run(folder, name, seed, of) for name, of in losses.items() for seed in (0, 1)]
    for run in runs:
        rows = pl.read_parquet(run.metrics)
        loss = rows.filter(place="train")
        rank = pl.col("value") / 100 + (0.1 if run.optimizer == "muon" else 0.0)
        ranks = loss.with_columns(metric=pl.lit("weight_effective_rank_share"), place=pl.lit("fc1"), value=rank)
        rows.filter(pl.col("metric") != "weight_effective_rank_share").vstack(ranks).write_parquet(run.metrics)
    return runs


LOSSES: dict[str, list[float | None]] = {
    "sgd": [2.3, 2.29, 2.28],
    "adamw": [2.3, 1.0, 0.4],
    "muon": [2.3, 0.5, 0.1],
}


def test_each_two_optimisers_are_compared_at_the_loss_that_both_reached(tmp_path: Path) -> None:
    """What all reached is what SGD did, which is hardly better than guessing."""
    tables = summarise_sweep(swept(tmp_path, LOSSES))
    assert tables.summary["target_loss_nats"].to_list() == [2.28] * 3
    assert tables.summary["start_loss_nats"].to_list() == [2.3] * 3
    found = tables.comparisons.filter(figure="weight_effective_rank")
    matched = {(row["optimizer"], row["other"]): row for row in found.filter(moment="matched").to_dicts()}
    assert {pair: row["target_loss_nats"] for pair, row in matched.items()} == {
        ("sgd", "adamw"): 2.28,
        ("sgd", "muon"): 2.28,
        ("adamw", "muon"): 0.4,
    }
    # At one loss the ranks of two differ by what does not go with the loss.
    assert [row["difference"] for row in matched.values()] == pytest.approx([0.0, -0.1, -0.1])
    assert {row["gap_steps"] for row in matched.values()} == {10.0}
    at_end = found.filter(moment="end")
    assert at_end.select("target_loss_nats", "gap_steps").null_count().row(0) == (3, 3)
    assert at_end["difference"].to_list() == pytest.approx([0.0188, -0.0782, -0.097])
    # The figures, and so the trends, are those of the loss that all reached.
    shown = tables.figures.filter(moment="matched", figure="weight_effective_rank", optimizer="adamw")
    assert shown["value"].to_list() == pytest.approx([0.0228] * 2)


def test_an_optimiser_is_followed_over_the_scales_at_one_loss(tmp_path: Path) -> None:
    """Ranks that go with the loss alone, where the slow optimiser gets further the larger the model."""
    runs = []
    for size, (scale, lowest) in enumerate({"small": 1.2, "medium": 0.9, "large": 0.6}.items()):
        folder = tmp_path / scale
        folder.mkdir()
        swept_runs = swept(folder, {"sgd": [2.3, 1.5, lowest], "adamw": [2.3, 0.8, 0.4]})
        for run in swept_runs:
            facts = json.loads((run.run / "run.json").read_text()) | {"n_parameters": 1000 * 4**size}
            (run.run / "run.json").write_text(json.dumps(facts))
        runs += [replace(run, scale=scale) for run in swept_runs]
    tables = summarise_sweep(runs)
    ranks = tables.trends.filter(figure="weight_effective_rank", moment="matched")
    found = {row["optimizer"]: row for row in ranks.to_dicts()}
    assert {name: row["target_loss_nats"] for name, row in found.items()} == {"sgd": 1.2, "adamw": 0.4}
    # At one loss there is one rank; at those of the scales AdamW's would fall with SGD's.
    assert [row["slope"] for row in found.values()] == pytest.approx([0.0, 0.0], abs=1e-15)
    at_scales = tables.figures.filter(figure="weight_effective_rank", moment="matched", optimizer="adamw", seed=0)
    assert at_scales["value"].to_list() == pytest.approx([0.012, 0.009, 0.006])
    # SGD's is at a checkpoint of the smallest model and between two of the others.
    assert found["sgd"]["bracket_low"] < 0 < found["sgd"]["bracket_high"]
    assert found["adamw"]["bracket_low"] == pytest.approx(found["adamw"]["bracket_high"], abs=1e-15)
    end = tables.trends.filter(figure="weight_effective_rank", moment="end")
    assert end["bracket_low"].to_list() == end["bracket_high"].to_list() == pytest.approx(end["slope"].to_list())
    assert end.select("target_loss_nats", "gap_steps").null_count().row(0) == (2, 2)


def test_the_bracket_holds_what_a_bending_figure_has_in_truth() -> None:
    """Both have 100 exp(-2 loss), and no difference where their losses are one."""
    losses = {"sgd": [2.3, 2.0, 0.7], "muon": [2.3, 1.4, 0.2]}
    target = target_loss([steps(of) for of in losses.values()])  # type: ignore[arg-type]
    rows = []
    for name, of in losses.items():
        at = at_moments(steps(of, peak=[100 * np.exp(-2 * loss) for loss in of]), target)["matched"]  # type: ignore[arg-type]
        rows += [
            {
                "scale": "small",
                "n_parameters": 1,
                "optimizer": name,
                "seed": seed,
                "moment": "matched",
                "figure": "peak",
            }
            | {"value": at.values["peak"], "value_low": at.lowest["peak"], "value_high": at.highest["peak"]}
            for seed in range(6)
        ]
    [row] = comparisons(pl.DataFrame(rows)).to_dicts()
    assert row["difference"] < -5  # type: ignore[operator]
    assert row["bracket_low"] < row["difference"] < 0 < row["bracket_high"]


def test_what_decay_and_clipping_came_to_is_of_the_history(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "adamw", seed, [2.0, 1.0, 0.5]) for seed in (0, 1)]
    facts = json.loads((runs[1].run / "run.json").read_text()) | {"max_gradient_norm": 1.0}
    (runs[1].run / "run.json").write_text(json.dumps(facts))
    table = summarise_sweep(runs).runs
    assert table["decay_alone"].to_list() == pytest.approx([(1 - 0.01) * (1 - 0.005)] * 2)
    # Of runs from before the limit was noted, nothing is known of it.
    assert table["clipped_share"].to_list() == [None, 0.5]


def test_a_pair_whose_run_starts_at_the_matched_loss_or_diverged_is_in_no_comparison(tmp_path: Path) -> None:
    losses = LOSSES | {"sgd": [2.3, 9.0, None], "adamw": [2.3, 2.4, 2.5]}
    tables = summarise_sweep(swept(tmp_path, losses))
    assert "matched" not in tables.comparisons["moment"].to_list()
    assert set(tables.comparisons.select("optimizer", "other").rows()) == {("adamw", "muon")}
    [sgd, *_] = tables.summary.to_dicts()
    assert sgd["start_loss_nats"] is None


def test_the_command_shows_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "adamw", 0, [2.0, 1.0, 0.5])
    (tmp_path / "lm_scale_sweep").mkdir()
    summarise_sweep([run]).summary.write_parquet(tmp_path / "lm_scale_sweep/summary.parquet")
    assert main(["sweep", "lm_scale_sweep", "--results", str(tmp_path), "--format", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["optimizer"], row["train_loss_nats"]) == ("adamw", 0.5)
    assert main(["sweep", "--results", str(tmp_path)]) == 1
    assert "snakemake scale_sweep" in capsys.readouterr().err


def test_a_sweep_that_diverged_as_a_whole_still_has_its_tables(tmp_path: Path) -> None:
    tables = summarise_sweep([write_run(tmp_path, "sgd", 0, [2.0, 9.0, None])])
    assert tables.summary["n_diverged"].to_list() == [1]
    assert tables.summary["train_loss_nats"].null_count() == 1
    assert set(TABLE) <= set(for_terminal(tables.summary).columns)
    assert tables.trends.is_empty() and tables.comparisons.is_empty()


def test_a_rate_at_the_edge_of_its_grid_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path, "adamw", 0, [2.0, 1.0, 0.5], edge="highest"),
        write_run(tmp_path, "muon", 0, [2.0, 1.2]),
    ]
    tables = summarise_sweep(runs)
    assert tables.runs["n_classes"].to_list() == [4, 4]
    assert tables.runs["grid_edge"].to_list() == tables.summary["grid_edge"].to_list() == ["highest", None]
    show_summary(tables.summary, output_format="table", title="sweep")
    printed = capsys.readouterr().out
    assert "…" not in printed, "whole in 120 columns"
    # A line is broken where it would be longer.
    assert "up to 10 steps apart" in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 120
    [adamw, muon] = [line for line in printed.splitlines() if line.strip().startswith("tiny")]
    assert "0.1 >" in adamw and ">" not in muon
    assert "a better one may lie beyond" in " ".join(printed.split())
    show_summary(tables.summary.filter(optimizer="muon"), output_format="table", title="sweep")
    assert "may lie beyond" not in capsys.readouterr().out


def test_the_matched_loss_stands_beside_that_of_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(summarise_sweep(swept(tmp_path, LOSSES)).summary, output_format="table", title="sweep")
    assert "It is 2.280 at tiny (2.300 at the start)." in " ".join(capsys.readouterr().out.split())


def test_tables_have_every_figure_within_its_range(tmp_path: Path) -> None:
    tables = summarise_sweep([write_run(tmp_path, "adamw", 0, [2.0, 1.0, 0.5])])
    for table, schema in ((tables.summary, SweepSummary), (tables.dynamics, SweepCheckpoint)):
        assert set(FIGURES) < set(table.columns)
        for wrong in ({"hoyer": 1.1}, {"train_loss_nats": -0.1}, {"generalisation_gap_accuracy": -1.5}):
            with pytest.raises(ValidationError):
                schema.validate(table.with_columns(**{name: pl.lit(value) for name, value in wrong.items()}))
