"""What is said of a sweep's rates, matched losses and intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from outlier_moe.report.sweep_caveats import caveats
from outlier_moe.report.sweeps import Sweep
from outlier_moe.scale_sweep.answers import comparisons, pairs_of
from outlier_moe.tables.sweeps import SweptRunFacts
from tests.swept_tables import made_up_sweep

TRIED = {
    "scale_sweep_preset": "laptop",
    "scale_sweep": {"images": {"source": "digits"}, "presets": {"laptop": {"multiples": [0.1, 1.0]}}},
}


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("repeated"), n_seeds=3, diverges=False)


def said(tables: Sweep, study: dict[str, Any], name: str = "scale_sweep") -> str:
    return " ".join(caveats(name, tables, study))


def test_rates_that_were_not_tried_are_said_to_be_fixed(repeated: Sweep) -> None:
    text = said(repeated, {"lm_scale_sweep": {"multiples": [1.0]}}, "lm_scale_sweep")
    assert "Learning rates were fixed, and no others were tried: adamw 0.1 at all scales; muon 0.1" in text
    assert "best of its grid" in said(repeated, {"lm_scale_sweep": {"multiples": [0.3, 1.0]}}, "lm_scale_sweep")


def test_rates_that_differ_between_scales_are_said_to_be_in_the_way(repeated: Sweep) -> None:
    text = said(repeated, TRIED)
    assert "each the best of its grid by the held-out loss: adamw 0.1 at all scales; muon 0.1 at all scales." in text
    assert "differ between scales" not in text
    rate = pl.when((pl.col("scale") == "w16") & (pl.col("optimizer") == "muon")).then(0.02).otherwise("learning_rate")
    other = {**repeated, "summary": repeated["summary"].with_columns(learning_rate=rate)}
    text = said(other, TRIED)
    assert "muon 0.1 at w8, 0.02 at w16. The rates of muon differ between scales" in text


def test_a_grid_that_diverged_has_no_best_rate(repeated: Sweep) -> None:
    edge = pl.when(scale="w8", optimizer="muon").then(pl.lit("all diverged")).otherwise("grid_edge")
    other = {**repeated, "summary": repeated["summary"].with_columns(grid_edge=edge)}
    text = said(other, TRIED)
    assert "each the best of its grid by the held-out loss unless the whole grid diverged: adamw" in text
    assert "Every rate of its grid diverged; the lowest was taken: muon at w8 (0.1)." in text
    assert "a better one may lie beyond: muon at w16 (the highest, 0.1)." in text
    assert "diverged" not in said(repeated, TRIED)
    SweptRunFacts.validate(repeated["runs"].with_columns(grid_edge=pl.lit("all diverged")))


def test_a_matched_loss_near_the_start_is_said_to_be_nearly_guessing(repeated: Sweep) -> None:
    text = said(repeated, TRIED)
    assert "1 at w8 (at the start 1.99), 1 at w16 (at the start 1.99); to guess one of 10 classes costs 2.303." in text
    assert "nearly guessing" not in text
    near = pl.when(scale="w8").then(1.95).otherwise("target_loss_nats")
    other = {**repeated, "summary": repeated["summary"].with_columns(target_loss_nats=near)}
    assert "At w8 it lies within 5 % of that at the start: matched there means nearly guessing" in said(other, TRIED)
    of_text = {**repeated, "runs": repeated["runs"].with_columns(n_classes=pl.lit(None, pl.Int64))}
    assert "classes" not in said(of_text, {}, "lm_scale_sweep")


def test_the_loss_at_which_two_are_compared_is_told_where_it_is_their_own(repeated: Sweep) -> None:
    own = pl.when(scale="w8").then(1.95).when(scale="w16").then(1.0).otherwise(None)
    other = {**repeated, "comparisons": repeated["comparisons"].with_columns(target_loss_nats=own)}
    assert "that, too, is nearly the start for adamw and muon at w8 (1.95)." in said(other, TRIED)


def test_intervals_of_few_seeds_and_the_time_of_a_step_are_told(repeated: Sweep) -> None:
    # Made-up runs of one seed are much alike, which gives no interval.
    trends = repeated["trends"].with_columns(low=pl.lit(0.0), high=pl.lit(1.0))
    assert "Intervals of 95 % from 3 seeds, the learning rates given, hold the true value in" in said(
        {**repeated, "trends": trends}, TRIED
    )
    assert "on a CPU the processor time of all threads" in said(repeated, TRIED)


def test_scales_at_which_an_optimiser_diverged_are_in_no_number_of_pairs(tmp_path: Path) -> None:
    three = made_up_sweep(tmp_path, n_seeds=3, diverges=False, sizes={"w8": 1000, "w16": 4000, "w32": 8000})
    assert "tested by 9 pairs (3 seeds at 3 scales)" in said(three, TRIED)
    kept = three["figures"].filter(~((pl.col("scale") == "w8") & (pl.col("optimizer") == "muon")))
    fewer = {**three, "comparisons": comparisons(pairs_of(kept))}
    assert "tested by 6 pairs (3 seeds at 2 scales)" in said(fewer, TRIED)


def test_what_decay_and_clipping_do_is_told(repeated: dict[str, pl.DataFrame]) -> None:
    text = said(repeated, TRIED)
    # 1 - 0.1 * 0.1 and 1 - 0.05 * 0.1, of every run.
    assert "the same decay leaves of a weight, by itself: adamw 98.5 %; muon 98.5 %." in text
    assert "were cut to it" not in text
    share = pl.when(optimizer="muon").then(0.25).otherwise(0.5)
    cut = {**repeated, "runs": repeated["runs"].with_columns(clipped_share=share)}
    assert "in these shares of the steps: adamw 50 %, muon 25 %." in said(cut, TRIED)
    kept = {**repeated, "runs": repeated["runs"].with_columns(weight_decay=0.0)}
    assert "leaves of a weight" not in said(kept, TRIED)


def test_the_one_loss_at_which_sizes_are_compared_is_told(repeated: dict[str, pl.DataFrame]) -> None:
    followed = repeated["trends"].filter(moment="matched").drop_nulls("target_loss_nats")
    losses = dict(followed.select("optimizer", "target_loss_nats").unique(maintain_order=True).iter_rows())
    assert set(losses) == {"adamw", "muon"}
    told = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
    assert f"how figures go with size is read at one loss at all scales ({told})" in said(repeated, TRIED)
