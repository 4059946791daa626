"""A language model's run: at the one rate that is given, or at the best of those tried on held-out windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.language import (
    LanguageModel,
    _held_out_parts,
    language_model_of,
    train_language_model,
    try_language_model_rates,
)
from outlier_moe.study.study import validated_study
from outlier_moe.upcycling.study import ModelSizes
from tests.unit.scale_sweep.conftest import ROOT, SCHEMA
from tests.unit.upcycling.tiny_text import SIZES, tokenized_text

RECORDING = RecordOptions(floor=0.5, device="cpu")
TINY = {"n_layers": 2, "d_head": 8, "n_steps": 6, "n_checkpoints": 2, "n_evaluated": 4, "n_recorded": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenized_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return validated_study(read_yaml(ROOT / "config/config.yaml"), SCHEMA)["lm_scale_sweep"]


def model_of(sweep: dict[str, Any], text: Path, **changed: Any) -> LanguageModel:
    sizes = {"vocab_size": SIZES.vocab_size, "sequence_length": SIZES.sequence_length}
    return language_model_of(sweep | TINY | changed, text, d_model=16, optimizer="muon", **sizes)


def test_the_shipped_runs_are_at_the_rates_given_and_nothing_is_tried(
    shipped: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    assert shipped["multiples"] == [1.0]
    of = model_of(shipped, text)
    assert of.sizes == ModelSizes(SIZES.vocab_size, 16, 2, 2, 64, SIZES.sequence_length)
    train_language_model(of, None, tmp_path / "run", RECORDING, seed=0)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert (facts["optimizer_lr"], facts["optimizer_adamw_lr"], facts["optimizer_grid_edge"]) == (0.01, 0.01, None)


# Windows of 4 tokens; 3 more begin one that is not whole.
@pytest.mark.parametrize(
    ("n_windows", "n_each", "n_reported", "n_choosing"), [(9, 3, 3, 3), (6, 3, 3, 3), (5, 3, 3, 2), (2, 3, 1, 1)]
)
def test_rates_are_chosen_by_windows_behind_those_reported(
    n_windows: int, n_each: int, n_reported: int, n_choosing: int, tmp_path: Path
) -> None:
    np.save(tmp_path / "held_out.npy", np.arange(4 * n_windows + 3))
    parts = _held_out_parts(tmp_path / "held_out.npy", n_each, 4)
    assert parts["test"].flatten().tolist() == list(range(4 * n_reported))
    assert parts["validation"].flatten().tolist() == list(range(4 * n_reported, 4 * (n_reported + n_choosing)))


@pytest.mark.parametrize("n_windows", [0, 1])
def test_a_text_with_no_window_left_to_choose_by_is_refused(n_windows: int, tmp_path: Path) -> None:
    stream = tmp_path / "held_out.npy"
    np.save(stream, np.arange(4 * n_windows + 3))
    with pytest.raises(StudyError) as caught:
        _held_out_parts(stream, 3, 4)
    assert (caught.value.key, caught.value.got) == ("upcycle.text.held_out_fraction", n_windows)
    assert "at least 2 windows of 4 tokens" in str(caught.value) and str(stream) in str(caught.value)


def test_the_best_rate_on_held_out_windows_is_chosen(shipped: dict[str, Any], text: Path, tmp_path: Path) -> None:
    # At the lowest of them next to nothing is learnt.
    of = model_of(shipped, text, multiples=[2.0, 1e-5, 0.1], tuning_share=0.5)
    try_language_model_rates(of, tmp_path / "rates.parquet")
    table = pl.read_parquet(tmp_path / "rates.parquet")
    assert table["learning_rate"].to_list() == pytest.approx([1e-7, 1e-3, 2e-2])
    assert table["n_steps"].to_list() == [3, 3, 3]
    [chosen] = table.filter("is_chosen").to_dicts()
    assert chosen["validation_loss_nats"] == table["validation_loss_nats"].min()
    assert (chosen["multiple"], [path.name for path in tmp_path.iterdir()]) == (2.0, ["rates.parquet"])
    train_language_model(of, tmp_path / "rates.parquet", tmp_path / "run", RECORDING, seed=0)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert (facts["optimizer_lr"], facts["optimizer_adamw_lr"]) == pytest.approx((0.02, 0.02))
    assert facts["optimizer_grid_edge"] == "highest"


def test_what_is_measured_along_the_way_changes_no_rate(shipped: dict[str, Any], text: Path, tmp_path: Path) -> None:
    tables = []
    for name, n in (("few", 1), ("many", 3)):
        of = model_of(shipped, text, multiples=[0.1, 1.0], n_checkpoints=n, n_recorded=n)
        try_language_model_rates(of, tmp_path / f"{name}.parquet")
        tables.append(pl.read_parquet(tmp_path / f"{name}.parquet"))
    assert tables[0].equals(tables[1])
