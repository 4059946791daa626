"""The tests of a whole study: of one preset, and of all of them, whose number the q-values pay for."""

from __future__ import annotations

import polars as pl
import pytest

from outlier_moe.statistics import study_tests
from outlier_moe.statistics.degenerate import NEARLY_ALL
from outlier_moe.tables.comparison import ModelResample
from tests.unit.plots.comparisons import made_up_comparison

PRESETS = ("dettmers2022", "survey2025", "sun2024")
NO_RESAMPLES = ModelResample.create_empty()


def tables_of(models: pl.DataFrame, presets: tuple[str, ...]) -> study_tests.StudyTests:
    return study_tests.tests_of_study(models, NO_RESAMPLES, presets=list(presets), seed=0)


def test_models_with_activations_that_are_no_numbers_are_in_no_test(caplog: pytest.LogCaptureFixture) -> None:
    models = made_up_comparison(7, presets=PRESETS[:1])
    odd = models["model"][0]
    broken = models.with_columns(n_nonfinite=pl.when(pl.col("model") == odd).then(9).otherwise(0).cast(pl.UInt64))
    found = tables_of(broken, PRESETS[:1])
    without = tables_of(models.filter(pl.col("model") != odd), PRESETS[:1])
    for name in found._fields:
        assert getattr(found, name).equals(getattr(without, name)), name
    assert f"{odd} is in no test" in caplog.text


def test_models_that_a_preset_marks_wholly_are_in_no_test_by_it(caplog: pytest.LogCaptureFixture) -> None:
    models = made_up_comparison(7, presets=PRESETS[:2])
    odd = pl.col("model") == models["model"][0], pl.col("preset") == PRESETS[0]
    share = pl.when(*odd).then(NEARLY_ALL).when(odd[0]).then(NEARLY_ALL - 0.01).otherwise("d_model_share")
    degenerate = models.with_columns(d_model_share=share)
    found = tables_of(degenerate, PRESETS[:2])
    without = tables_of(models.filter(~(odd[0] & odd[1])), PRESETS[:2])
    for name in ("pairs", "groups", "trends"):
        figures = without._asdict()[name].filter(pl.col("y") != "d_model_share")
        assert getattr(found, name).filter(pl.col("y") != "d_model_share").equals(figures), name
    assert [line for line in caplog.messages if models["model"][0] in line and PRESETS[0] in line]
    assert not [line for line in caplog.messages if models["model"][0] in line and PRESETS[1] in line]


def test_all_presets_are_tested_and_paid_for() -> None:
    models = made_up_comparison(6, presets=PRESETS)
    one, every = tables_of(models, PRESETS[:1]), tables_of(models, PRESETS)
    for name in one._fields:
        table, alone = getattr(every, name), getattr(one, name)
        assert set(table["preset"]) == set(PRESETS)
        # What has p-values, and what follows from q-values: `verdict`.
        figures = [column for column in alone.columns if "q_value" not in column and column != "verdict"]
        assert table.filter(preset=PRESETS[0]).select(figures).equals(alone.select(figures)), name
    one_family = {"p_value": "q_value", "p_value_either": "q_value_either", "kendall_p_value": "kendall_q_value"}
    for table in (every.dense_moe, every.phase_transitions):
        columns = [table.select(p=p, q=q) for p, q in one_family.items() if p in table.columns]
        tried = pl.concat(columns).drop_nulls().sort("p", "q")
        # Benjamini and Hochberg: the largest p-value pays nothing, the smallest at most for all.
        assert tried["q"].is_sorted()
        assert tried["q"][-1] == tried["p"][-1]
        assert tried["q"][0] <= tried["p"][0] * len(tried)
