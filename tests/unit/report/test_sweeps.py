"""The sweeps in the report: pictures and tables of each, and the answers in words."""

from __future__ import annotations

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
    assert group.text.startswith("12 runs (3 seeds), 1 diverged (muon at w8)")
    # No verdict of so few runs finds anything, and what was not tested is not spoken of.
    assert group.statements == {}
    assert len(group.caveats) == 1 and "muon at w16 (at its highest, 0.1)" in group.caveats[0]
    assert [picture.id for picture in group.pictures][0] == "scale_sweep-performance"
    differences, slopes = group.tables
    assert [table.id for table in group.tables] == ["scale_sweep-differences", "scale_sweep-slopes"]
    [row] = [row for row in slopes.rows if row[0].text == "effective rank of weights" and row[1].text == "adamw"]
    moments = [head for head, _ in slopes.heads if head.startswith("estimate")]
    assert moments == ["estimate at the end", "estimate at matched loss"]
    assert row[2].text == row[3].text == "-0.15"
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
    assert {"learning rate", "start loss nats", "target loss nats"} < set(
        heads
    ) and "weight effective rank" not in heads
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
