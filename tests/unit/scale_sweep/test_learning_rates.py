"""The best of the rates that were tried, and whether a better one may lie beyond."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.scale_sweep.learning_rates import best_rate, grid_edge


def test_a_rate_that_diverges_is_never_chosen_and_if_all_do_the_lowest_is() -> None:
    losses = pl.DataFrame({"validation_loss_nats": [2.0, None, 1.0]})
    assert best_rate(losses) == 2
    assert (
        best_rate(pl.DataFrame({"validation_loss_nats": [None, None]}, schema={"validation_loss_nats": pl.Float64}))
        == 0
    )


@pytest.mark.parametrize(
    ("chosen", "edge"),
    [([True, False, False], "lowest"), ([False, True, False], None), ([False, False, True], "highest"), ([True], None)],
)
def test_a_rate_at_the_edge_of_its_grid_is_known(chosen: list[bool], edge: str | None) -> None:
    assert grid_edge(pl.DataFrame({"is_chosen": chosen, "validation_loss_nats": [1.0] * len(chosen)})) == edge


def test_the_lowest_rate_of_a_grid_that_diverged_is_not_called_its_best() -> None:
    tried = {"is_chosen": [True, False], "validation_loss_nats": [None, None]}
    assert grid_edge(pl.DataFrame(tried)) == "all diverged"
    assert grid_edge(pl.DataFrame({**tried, "validation_loss_nats": [2.0, None]})) == "lowest"
