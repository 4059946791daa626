"""What is said of the rates that the table marks."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.scale_sweep.terminal_table import edge_note, for_terminal, matched_note
from outlier_moe.tables.sweeps import COST, GridEdge

BEYOND = "a better one may lie beyond"
DIVERGED = "Where a rate is marked x, every rate of its grid diverged; the lowest was taken."


@pytest.mark.parametrize(
    ("edges", "rates", "says"),
    [
        (["highest", None], ["0.1 >", "0.1"], {BEYOND}),
        (["all diverged", None], ["0.1 x", "0.1"], {DIVERGED}),
        (["all diverged", "lowest"], ["0.1 x", "0.1 <"], {BEYOND, DIVERGED}),
        ([None], ["0.1"], set()),
    ],
)
def test_a_mark_is_explained_where_there_is_one(edges: list[GridEdge | None], rates: list[str], says: set[str]) -> None:
    summary = pl.DataFrame({"grid_edge": edges}, schema={"grid_edge": pl.String}).with_columns(
        pl.lit(0.1).alias(COST), learning_rate=pl.lit(0.1), n_seeds=pl.lit(1), n_diverged=pl.lit(0)
    )
    assert for_terminal(summary)["learning_rate"].to_list() == rates
    note = edge_note(summary) or ""
    assert {words for words in (BEYOND, DIVERGED) if words in note} == says
    assert bool(note) == bool(says)


def test_steps_are_written_without_a_power_of_ten() -> None:
    summary = pl.DataFrame(
        {
            "scale": ["s", "m"],
            "step_matched": [1152.5, 23_090.0],
            "gap_steps_matched": [0.0, 2500.0],
            "target_loss_nats": [1.0, 1.0],
            "start_loss_nats": [2.0, 2.0],
        }
    )
    note = matched_note(summary) or ""
    assert {"1,152", "23,090", "2,500"} <= set(note.split())
    assert "e+" not in note
