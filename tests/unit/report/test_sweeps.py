"""The sweeps in the report: pictures and tables of each, and the answers in words."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.report.sweeps import Sweep, sweep_pictures, sweep_tables
from tests.swept_tables import made_up_sweep


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("single"), n_seeds=1, diverges=False)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return made_up_sweep(tmp_path_factory.mktemp("repeated"), n_seeds=3, diverges=True)


def test_the_section_has_answers_in_words_and_as_tables_and_what_they_rest_on(repeated: Sweep) -> None:
    [group] = sweep_pictures({"scale_sweep": repeated})
    assert group.text.startswith("12 runs (3 seeds), 1 diverged (muon at w8) and is in no comparison.")
    # Two seeds have a run of both at each of two scales.
    heads = [one.head for one in group.statements]
    assert heads[0] == "adamw beside muon (4 pairs of runs: 2 seeds at 2 scales)"
    assert "adamw with size (3 seeds at 2 scales)" in heads
    said = " ".join(group.caveats)
    assert "a better one may lie beyond: muon at w16 (the highest, 0.1)." in said
    assert "tested by 4 pairs (2 seeds at 2 scales)" in said
    assert "no p-value below 0.5 can come" in said
    assert "two checkpoints, up to 5 steps apart" in said
    assert [picture.id for picture in group.pictures][0] == "scale_sweep-performance"
    differences, slopes = group.tables
    assert [table.id for table in group.tables] == ["scale_sweep-differences", "scale_sweep-slopes"]
    [row] = [row for row in slopes.rows if row[0].text == "effective rank of weights" and row[1].text == "adamw"]
    moments = [head for head, _ in slopes.heads if head.startswith("slope")]
    assert moments == ["slope at the end", "slope at matched loss"]
    assert row[2].text == row[5].text == "-0.15"
    asked = {row[0].text for row in differences.rows}
    assert {"test accuracy", "stable rank of the residual stream", "systematic features"} < asked


def test_without_a_sweep_the_report_is_silent_and_of_one_seed_it_says_so(single: Sweep) -> None:
    assert sweep_pictures({}) == [] and sweep_tables({}) == []
    [group] = sweep_pictures({"lm_scale_sweep": single})
    assert "one seed, no repetition" in group.text
    shown = {table.id: table for table in sweep_tables({"lm_scale_sweep": single})}
    assert set(shown) == {f"lm_scale_sweep-{name}" for name in ("summary", "figures", "trends", "comparisons", "runs")}
    assert len(shown["lm_scale_sweep-summary"].rows) == 4


def test_the_tables_have_the_value_at_initialisation(repeated: Sweep) -> None:
    shown = {table.id.removeprefix("scale_sweep-"): table for table in sweep_tables({"scale_sweep": repeated})}
    heads = [head for head, _ in shown["summary"].heads]
    place = heads.index("weight effective rank start")
    assert heads[place : place + 3] == [f"weight effective rank{of}" for of in (" start", " matched", "")]
    assert heads.index("start loss nats") == heads.index("target loss nats") - 1
    # Two seeds did not diverge: 0.901 and 0.902 at the start, 0.01 more after ten steps.
    [row] = [row for row in shown["figures"].rows if (row[0].sort, row[1].text, row[2].text) == ("005", "w8", "muon")]
    assert row[0].text == "effective rank of weights / min(m, n)"
    assert [(cell.text, cell.interval) for cell in (row[3], row[5])] == [
        ("0.901", "0.901 to 0.902"),
        ("0.911", "0.911 to 0.912"),
    ]


def test_of_a_single_scale_only_the_steps_are_drawn(single: Sweep) -> None:
    of_one = {name: of.filter(scale="w16") if "scale" in of.columns else of for name, of in single.items()}
    [group] = sweep_pictures({"lm_scale_sweep": of_one})
    assert [picture.id for picture in group.pictures] == ["lm_scale_sweep-dynamics"]


def test_tables_without_the_newest_columns_are_read(repeated: Sweep) -> None:
    newest = {"start_loss_nats", "p_value_of_seeds", "family", "bootstrap_low", "bootstrap_high"}
    old = {
        name: table.drop(newest & set(table.columns)).drop("target_loss_nats", strict=name == "summary")
        if name == "comparisons"
        else table.drop(newest & set(table.columns))
        for name, table in repeated.items()
    }
    [group] = sweep_pictures({"scale_sweep": old})
    assert "Two optimisers are compared" not in " ".join(group.caveats)
    assert isinstance(old["summary"], pl.DataFrame) and sweep_tables({"scale_sweep": old})
