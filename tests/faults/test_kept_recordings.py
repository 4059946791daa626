"""Recordings that nothing loses: killed in the middle, of another text, damaged, in shards, of before."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from outlier_moe.config.registry import DirectorySource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.sharding import Shard
from outlier_moe.errors import StudyError
from outlier_moe.recording import resident
from outlier_moe.recording.kept_recordings import MADE_FROM, WHOLE_IS_KEPT, KeptRecordings
from outlier_moe.recording.record import record_outliers
from outlier_moe.recording.shard_merging import merge_shards
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens
from outlier_moe.tables.recording import read_recording
from tests.tiny_models import VOCABULARY, save_tiny_model
from tests.unit.sources.entries import model_entry

OPTIONS = RecordOptions(floor=0.5, chunk=1, n_peaks=3, mode="resident", device="cpu")


class Study:
    """A folder with a tiny model and a text."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny_model("mixtral", folder / "checkpoint", "the quick brown fox jumps over the lazy dog " * 20)
        fetch_model(model_entry(DirectorySource(folder / "checkpoint"), id="tiny"), folder / "models/tiny")
        self.text(0)
        self.outliers = folder / "results/tiny/outliers"
        self.kept = KeptRecordings(folder / "results/tiny/recordings")

    def text(self, seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, VOCABULARY, (4, 12)).astype(np.uint32)
        metadata = {"n_sequences": 4, "sequence_length": 12, "tokens_sha256": tokens_sha256(rows)}
        write_tokens(TokenTable(rows, metadata), self.folder / "tokens.arrow")

    def record(self, output: Path | None = None, *, keeps: bool = True, **options: Any) -> dict[str, pl.DataFrame]:
        output = self.outliers if output is None else output
        kept = self.kept if keeps else None
        model = self.folder / "models/tiny"
        record_outliers(model, self.folder / "tokens.arrow", output, replace(OPTIONS, **options), kept=kept)
        return tables(output)

    def folders(self) -> set[str]:
        return {path.name for path in self.kept.folder.iterdir() if path.is_dir()}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks that went through the model."""
    seen: list[int] = []
    plain = resident._run_chunk

    def run(model: Any, structure: Any, tokens: Any) -> list[float]:
        seen.append(len(tokens))
        return plain(model, structure, tokens)

    monkeypatch.setattr(resident, "_run_chunk", run)
    return seen


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {
        path.name: pl.read_ipc(path.read_bytes()) if path.suffix == ".arrow" else pl.read_parquet(path)
        for path in folder.iterdir()
        if path.suffix in (".arrow", ".parquet")
    }


def assert_same(ours: dict[str, pl.DataFrame], theirs: dict[str, pl.DataFrame]) -> None:
    assert ours.keys() == theirs.keys()
    for name, table in ours.items():
        assert table.equals(theirs[name]), name


def interrupted_after(n_chunks: int, seen: list[int]) -> Callable[..., Any]:
    plain = resident._run_chunk

    def run(*args: Any) -> list[float]:
        if len(seen) == n_chunks:
            raise KeyboardInterrupt
        return plain(*args)

    return run


@pytest.mark.parametrize("damage", [False, True])
def test_an_interrupted_resident_run_goes_on_after_its_finished_chunks(
    study: Study, runs: list[int], monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    expected = study.record(study.folder / "undisturbed", keeps=False)
    runs.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resident, "_run_chunk", interrupted_after(3, runs))
        study.record()
    assert not study.outliers.exists()
    if damage:
        arrays = study.outliers.with_name(".outliers.resume") / "chunk-00000001/arrays.safetensors.lz4"
        arrays.write_bytes(arrays.read_bytes()[:100])
    runs.clear()
    assert_same(study.record(), expected)
    assert sum(runs) == (3 if damage else 1), "only what was not finished runs"
    assert not list(study.outliers.parent.glob(".outliers*")), "nothing is left beside it"


def test_what_was_finished_of_another_checkpoint_is_not_used(
    study: Study, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resident, "_run_chunk", interrupted_after(2, runs))
        study.record()
    weights = study.folder / "checkpoint/model.safetensors"
    state = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    runs.clear()
    study.record()
    assert sum(runs) == 4


def test_going_back_to_a_former_text_takes_its_recording_up(study: Study, runs: list[int]) -> None:
    first = study.record()
    study.text(1)
    shutil.rmtree(study.outliers)
    second = study.record()
    assert not second["sequences.parquet"].equals(first["sequences.parquet"])
    assert len(study.folders()) == 2
    study.text(0)
    runs.clear()
    shutil.rmtree(study.outliers)
    assert_same(study.record(), first)
    assert runs == []


def test_where_nothing_may_be_recorded_what_is_not_kept_is_an_error(study: Study, runs: list[int]) -> None:
    study.record()
    study.text(1)
    runs.clear()
    with pytest.raises(StudyError, match="The kept recording") as caught:
        record_outliers(
            study.folder / "models/tiny", study.folder / "tokens.arrow", study.outliers, OPTIONS, kept=study.kept,
            only_kept=True,
        )  # fmt: skip
    assert caught.value.remedy and runs == []


def test_a_recording_of_other_weights_or_options_is_another(study: Study, runs: list[int]) -> None:
    study.record()
    study.record(floor=1.0)
    study.record(taps=("attn_in", "mlp_in"))
    weights = study.folder / "checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    study.record()
    study.kept.revision += 1
    study.record()
    assert len(study.folders()) == 5
    runs.clear()
    study.record(chunk=2, mode="streamed")
    assert runs == [], "how it is reached makes no other"


def test_a_kept_recording_that_is_damaged_is_recorded_anew(
    study: Study, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected = study.record()
    table = study.outliers / "any_layer.arrow"
    flipped = bytearray(table.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    # In place: the kept file is the same one.
    with table.open("r+b") as file:
        file.write(flipped)
    runs.clear()
    with caplog.at_level(logging.WARNING):
        assert_same(study.record(), expected)
    assert sum(runs) == 4 and "damaged" in caplog.text


def test_a_recording_of_before_is_kept_and_taken_up(study: Study, runs: list[int]) -> None:
    expected = study.record(keeps=False)
    run = json.loads((study.outliers / "run.json").read_text())
    del run[MADE_FROM]
    (study.outliers / "run.json").write_text(json.dumps(run))
    study.kept.keep(study.outliers, model_directory=study.folder / "models/tiny")
    shutil.rmtree(study.outliers)
    runs.clear()
    assert_same(study.record(), expected)
    assert runs == []


def test_a_recording_of_before_whose_weights_have_changed_is_kept_apart(study: Study, runs: list[int]) -> None:
    study.record(keeps=False)
    run = json.loads((study.outliers / "run.json").read_text())
    del run[MADE_FROM]
    (study.outliers / "run.json").write_text(json.dumps(run))
    weights = study.folder / "checkpoint/model.safetensors"
    os.utime(weights, (weights.stat().st_atime, (study.outliers / "run.json").stat().st_mtime + 10))
    study.kept.keep(study.outliers, model_directory=study.folder / "models/tiny")
    runs.clear()
    study.record()
    assert sum(runs) == 4 and len(study.folders()) == 2


def test_shards_are_kept_until_they_are_merged(study: Study, runs: list[int]) -> None:
    shards = [study.outliers.parent / f"shards/{number}" for number in range(2)]
    for number, place in enumerate(shards):
        study.record(place, shard=Shard(number, 2))
    assert len(study.folders()) == 2
    shutil.rmtree(shards[0])
    runs.clear()
    study.record(shards[0], shard=Shard(0, 2))
    assert runs == []
    merge_shards(shards, study.outliers, kept=study.kept)
    assert len(study.folders()) == 1, "the merged recording in the place of its shards"
    merged = tables(study.outliers)
    for path in (study.outliers, *shards):
        shutil.rmtree(path)
    for number, place in enumerate(shards):
        study.record(place, shard=Shard(number, 2))
        assert [path.name for path in place.iterdir()] == [WHOLE_IS_KEPT]
    merge_shards(shards, study.outliers, kept=study.kept)
    assert_same(tables(study.outliers), merged)
    assert runs == []
    assert read_recording(study.outliers).run["n_sequences"] == 4


def test_a_disk_without_links_has_copies(study: Study, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    expected = study.record()
    shutil.rmtree(study.outliers)
    runs.clear()
    assert_same(study.record(), expected)
    assert runs == []
