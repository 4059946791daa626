"""The comparison against figures taken from the systematic tables by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from outlier_moe.comparison import ComparedModel, compare_models
from outlier_moe.errors import StudyError
from outlier_moe.filtering import Preset, systematic_features
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
    systematic = folder / name / "systematic.parquet"
    systematic_features(recording, PRESETS).write_parquet(systematic)
    return ComparedModel({"model": name, **FACTS}, recording.directory, systematic)


def test_each_row_equals_the_figures_of_its_systematic_features(tmp_path: Path) -> None:
    models = [compared(tmp_path, name, seed=seed) for seed, name in enumerate(["one", "two"])]
    table = compare_models(models, PRESETS)
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
    table = compare_models([compared(tmp_path, "one", seed=0)], PRESETS)
    row = table.filter(preset="impossible", first_token="included").row(0, named=True)
    assert row["n_systematic"] == 0
    assert row["layer_fraction_mean"] is None


def test_models_on_different_texts_are_refused(tmp_path: Path) -> None:
    models = [compared(tmp_path, "one", seed=0), compared(tmp_path, "two", seed=0, corpus="b" * 64)]
    with pytest.raises(StudyError, match="different texts") as error:
        compare_models(models, PRESETS[:1])
    assert "two: sha256 bbbbbbbbbbbb" in str(error.value)


def test_activations_that_are_not_finite_are_reported(tmp_path: Path) -> None:
    activations = made_up_activations(n_layers=2, shape=(1, 10, 8), seed=0)
    activations["residual", 1][0, 3, 2] = np.nan
    activations["attn_in", 0][0, 0, 0] = np.inf
    recording = write_recording(tmp_path / "one" / "outliers", activations)
    systematic_features(recording, PRESETS).write_parquet(tmp_path / "one" / "systematic.parquet")
    model = ComparedModel({"model": "one", **FACTS}, recording.directory, tmp_path / "one" / "systematic.parquet")
    # Once at attn_in, once at residual and once more at residual_rms.
    assert compare_models([model], PRESETS[:1])["n_nonfinite"].to_list() == [3, 3]
    by_site = {(r["tap"], r["layer"]): r["n_nonfinite"] for r in recording.sites().iter_rows(named=True)}
    assert by_site["residual", 1] == by_site["residual_rms", 1] == by_site["attn_in", 0] == 1
    assert by_site["residual", 0] == 0
