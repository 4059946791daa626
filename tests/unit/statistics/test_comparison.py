"""The comparison against figures taken from the systematic tables by hand."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from outlier_moe.definitions.presets import Preset
from outlier_moe.judging.filtering import systematic_features, unanswered
from outlier_moe.judging.sequence_counts import write_sequence_counts
from outlier_moe.statistics.comparison import ComparedModel, compare_models, judged_models
from outlier_moe.tables.recording import Recording
from tests.recordings import made_up_activations, write_recording

PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence"),
    Preset("impossible", "systematic", "residual", 57344.0),
]
FACTS = {
    "kind": "dense",
    "family": "llama",
    "total_params_b": 0.1,
    "active_params_b": 0.1,
    "n_experts": None,
    "top_k": None,
    "routing": None,
}


def compared(folder: Path, name: str, *, seed: int, corpus: str = "a" * 64) -> ComparedModel:
    activations = made_up_activations(n_layers=3, shape=(3, 30, 40), seed=seed)
    recording = write_recording(folder / name / "outliers", activations, corpus=corpus)
    systematic = systematic_features(recording, PRESETS)
    systematic.write_parquet(folder / name / "systematic.parquet")
    return ComparedModel({"model": name, **FACTS}, recording, systematic.filter("is_systematic"))


def test_each_row_equals_the_figures_of_its_systematic_features(tmp_path: Path) -> None:
    models = [compared(tmp_path, name, seed=seed) for seed, name in enumerate(["one", "two"])]
    table = compare_models(models, PRESETS).models
    assert len(table) == len(models) * len(PRESETS) * 2
    for row in table.iter_rows(named=True):
        rows = [
            found
            for found in pl.read_parquet(tmp_path / row["model"] / "systematic.parquet").iter_rows(named=True)
            if (found["preset"], found["first_token"], found["is_systematic"])
            == (row["preset"], row["first_token"], True)
        ]
        assert row["n_systematic"] == len({found["feature"] for found in rows})
        assert row["n_pairs"] == (len(rows) if row["preset"] == "survey2025" else None)
        assert row["perplexity"] == pytest.approx(math.exp(2.0))
        if rows:
            assert row["n_systematic"] / 40 == row["d_model_share"]
            assert row["peak_largest"] == max(found["peak"] for found in rows)
            assert row["n_values"] == sum(found["n_values"] for found in rows)
            for name in ("layer_fraction", "position_fraction", "position_fraction_per_site"):
                values = [found[name] for found in rows]
                assert row[f"{name}_mean"] == pytest.approx(np.mean(values))
                assert row[f"{name}_median"] == pytest.approx(np.median(values))


def test_a_preset_that_finds_nothing_has_a_row(tmp_path: Path) -> None:
    table = compare_models([compared(tmp_path, "one", seed=0)], PRESETS).models
    row = table.filter(preset="impossible", first_token="included").row(0, named=True)
    assert row["n_systematic"] == 0
    assert row["layer_fraction_mean"] is None


def test_models_on_another_text_than_most_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpora = {"one": "a" * 64, "two": "b" * 64, "three": "b" * 64}
    models = [compared(tmp_path, name, seed=0, corpus=corpus) for name, corpus in corpora.items()]
    found = compare_models(models, PRESETS[:1])
    assert found.models["model"].unique(maintain_order=True).to_list() == ["two", "three"]
    # What is published of it is held against its own features, whatever the others read.
    assert found.features["model"].unique(maintain_order=True).to_list() == ["one", "two", "three"]
    (model, reason), *more = found.left_out.rows()
    assert (model, more) == ("one", [])
    assert "text aaaaaaaaaaaa; most models on" in reason
    assert "one is left out of the comparison" in caplog.text


@pytest.mark.parametrize(
    ("preset", "reason"),
    [
        (Preset("low", "systematic", "linear_inputs", 3.5), "from |x| >= 4 on, and the preset low asks for 3.5"),
        (Preset("sun", "massive", "residual", 3.75), "from |x| >= 4 on, and the preset sun asks for 3.75"),
    ],
)
def test_what_was_not_recorded_leaves_one_model_out(
    tmp_path: Path, preset: Preset, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = []
    for name, floor in (("high", 4.0), ("low", 3.0)):
        activations = made_up_activations(n_layers=1, shape=(2, 8, 8), seed=0)
        recording = write_recording(tmp_path / name / "outliers", activations, floor=floor)
        write_sequence_counts(recording, [], tmp_path / name / "counts")
        rows.append(({"model": name, **FACTS}, tmp_path / name / "outliers", tmp_path / name / "counts"))
    presets = [PRESETS[0], preset]
    judged = judged_models(rows, presets)
    found = compare_models(judged.models, presets, unjudged=judged.left_out)
    assert found.left_out.rows() == [("high", f"recorded {reason}")]
    assert found.models["model"].unique().to_list() == ["low"]
    assert "high is left out of the comparison" in caplog.text
    assert judged_models(rows, PRESETS[:1]).left_out.is_empty()


def test_a_view_that_was_not_recorded_leaves_a_model_out(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=1, shape=(2, 8, 8), seed=0)
    recording = write_recording(tmp_path / "outliers", activations)
    without = Recording(recording.directory, {**recording.run, "taps": ["attn_in", "mlp_in"]})
    assert unanswered(without, PRESETS[:2]) is None
    assert "the preset impossible judges residual" in str(unanswered(without, PRESETS))


def test_no_model_gives_empty_tables() -> None:
    found = compare_models([], PRESETS)
    assert [len(table) for table in found] == [0, 0, 0]


def test_every_row_has_the_facts_of_its_model(tmp_path: Path) -> None:
    model = compared(tmp_path, "one", seed=0)
    run = {**model.recording.run, "n_parameters": 3_000_000_000, "n_embedding_parameters": 500_000_000}
    run["tokens"] = {**run["tokens"], "tokenizer_sha256": "c" * 64}
    recording = Recording(model.recording.directory, run)
    facts = {**model.facts, "total_params_b": 3.1, "active_params_b": 0.775, "release_date": date(2025, 8, 5)}
    rows = compare_models([ComparedModel(facts, recording, model.features)], PRESETS).models
    for row in rows.iter_rows(named=True):
        assert row["active_ratio"] == 0.25
        assert row["embedding_free_params_b"] == 2.5
        assert row["tokenizer_sha256"] == "c" * 64
        assert row["release_date"] == date(2025, 8, 5)
    of_view = (
        recording.sites().filter(pl.col("tap").is_in(["attn_in", "mlp_in"])).rows_by_key(["tap", "layer"], named=True)
    )
    by_site = [np.mean([site["excess_kurtosis"] for site in sites]) for sites in of_view.values()]
    row = rows.row(
        by_predicate=(pl.col("preset") == "dettmers2022") & (pl.col("first_token") == "included"), named=True
    )
    assert row["excess_kurtosis_mean"] == pytest.approx(np.mean(by_site))
    assert row["excess_kurtosis_median"] == pytest.approx(np.median(by_site))


def test_a_perplexity_beyond_all_numbers_is_none(tmp_path: Path) -> None:
    model = compared(tmp_path, "one", seed=0)
    path = model.recording.directory / "sequences.parquet"
    pl.read_parquet(path).with_columns(pl.lit(800.0).alias("loss_nats")).write_parquet(path)
    assert compare_models([model], PRESETS).models["perplexity"].is_null().all()


def test_activations_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(1, 10, 8), seed=0)
    activations["residual", 1][0, 3, 2] = np.nan
    activations["attn_in", 0][0, 0, 0] = np.inf
    recording = write_recording(tmp_path / "one" / "outliers", activations)
    features = systematic_features(recording, PRESETS).filter("is_systematic")
    model = ComparedModel({"model": "one", **FACTS}, recording, features)
    # Once at attn_in, once at residual and once more at residual_rms.
    assert compare_models([model], PRESETS[:1]).models["n_nonfinite"].to_list() == [3, 3]
    by_site = {(r["tap"], r["layer"]): r["n_nonfinite"] for r in recording.sites().iter_rows(named=True)}
    assert by_site["residual", 1] == by_site["residual_rms", 1] == by_site["attn_in", 0] == 1
    assert by_site["residual", 0] == 0
