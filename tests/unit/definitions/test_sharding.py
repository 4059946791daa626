"""Sequences recorded in parts: merged, they are the tables of one run, byte for byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlier_moe.config.registry import DirectorySource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.definitions.sharding import WHOLE, Shard, shards_to_record
from outlier_moe.errors import StudyError
from outlier_moe.recording.record import record_outliers
from outlier_moe.recording.shard_merging import merge_shards
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens
from outlier_moe.tables.recording import read_recording
from tests.tiny_models import VOCABULARY, save_tiny_model
from tests.unit.sources.entries import model_entry

OPTIONS = RecordOptions(floor=0.5, chunk=1, n_peaks=3, mode="resident", device="cpu")
N_SHARDS = 3


def recorded(folder: Path, name: str, shard: Shard) -> Path:
    output = folder / f"{shard.number}-of-{shard.n_shards}"
    record_outliers(folder / name, folder / "tokens.arrow", output, replace(OPTIONS, shard=shard))
    return output


def with_tokens(folder: Path, name: str) -> Path:
    save_tiny_model(name, folder / "checkpoint", "the quick brown fox jumps over the lazy dog " * 20)
    fetch_model(model_entry(DirectorySource(folder / "checkpoint"), id=name), folder / name)
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (5, 12)).astype(np.uint32)
    metadata = {"n_sequences": 5, "sequence_length": 12, "tokens_sha256": tokens_sha256(rows)}
    write_tokens(TokenTable(rows, metadata), folder / "tokens.arrow")
    return folder


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts, recorded whole and in parts."""
    folder = with_tokens(tmp_path_factory.mktemp("mixtral"), "mixtral")
    recorded(folder, "mixtral", WHOLE)
    for number in range(N_SHARDS):
        recorded(folder, "mixtral", Shard(number, N_SHARDS))
    return folder


def parts(folder: Path) -> list[Path]:
    return [folder / f"{number}-of-{N_SHARDS}" for number in range(N_SHARDS)]


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def assert_merged(folder: Path, output: Path) -> None:
    whole, merged = tables(folder / "0-of-1"), tables(output)
    assert merged.keys() == whole.keys()
    assert [name for name in whole if merged[name] != whole[name]] == []


def test_merged_tables_of_a_model_with_experts_are_those_of_one_run(mixtral: Path, tmp_path: Path) -> None:
    # Whatever order they come in.
    merge_shards(parts(mixtral)[::-1], tmp_path / "merged")
    assert_merged(mixtral, tmp_path / "merged")
    assert {"experts.parquet", "routers.parquet"} < tables(tmp_path / "merged").keys()


def test_merged_tables_of_a_dense_model_are_those_of_one_run(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path, "llama")
    recorded(folder, "llama", WHOLE)
    merge_shards(
        [recorded(folder, "llama", Shard(number, N_SHARDS)) for number in range(N_SHARDS)], tmp_path / "merged"
    )
    assert_merged(folder, tmp_path / "merged")


def test_provenance_says_what_each_shard_was(mixtral: Path, tmp_path: Path) -> None:
    merge_shards(parts(mixtral), tmp_path / "merged")
    merged, whole = (read_recording(path).run for path in (tmp_path / "merged", mixtral / "0-of-1"))
    assert merged.keys() - whole.keys() == {"shards"} and whole.keys() <= merged.keys()
    assert [part["n_sequences"] for part in merged["shards"]] == [1, 2, 2]
    assert [part["shard"]["first_sequence"] for part in merged["shards"]] == [0, 1, 3]
    assert merged["time_run_s"] == sum(part["time_run_s"] for part in merged["shards"])
    for key in ("n_sequences", "tokens", "d_model", "versions", "model", "floor"):
        assert merged[key] == whole[key]
    assert "shard" not in whole


def changed(part: Path, output: Path, **keys: Any) -> Path:
    shutil.copytree(part, output)
    run = json.loads((part / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(run | keys))
    return output


def test_shards_of_something_else_are_refused(mixtral: Path, tmp_path: Path) -> None:
    first, second, third = parts(mixtral)
    with pytest.raises(StudyError, match="do not cover") as told:
        merge_shards([first, third], tmp_path / "merged")
    assert told.value.got == "0 to 0, 3 to 4"
    with pytest.raises(StudyError, match="do not cover"):
        merge_shards([first, second, second, third], tmp_path / "merged")
    for key, value in {"dtype": "bfloat16", "tokens": {"tokens_sha256": "0"}, "versions": {}, "device": "cuda"}.items():
        other = changed(third, tmp_path / key, **{key: value})
        with pytest.raises(StudyError, match="different recordings") as told:
            merge_shards([first, second, other], tmp_path / "merged")
        assert told.value.key == key
    with pytest.raises(StudyError, match="no part of another"):
        merge_shards([mixtral / "0-of-1"], tmp_path / "merged")
    lacking = changed(third, tmp_path / "lacking")
    (lacking / "experts.parquet").unlink()
    with pytest.raises(StudyError, match="has not the tables"):
        merge_shards([first, second, lacking], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_parts_cover_every_sequence_once() -> None:
    for n_sequences in (1, 2, 5, 16):
        for n_shards in range(1, n_sequences + 1):
            covered = [s for number in range(n_shards) for s in Shard(number, n_shards).sequences(n_sequences)]
            assert covered == list(range(n_sequences))
    with pytest.raises(StudyError, match="more shards than sequences"):
        Shard(0, 3).sequences(2)


def test_tables_that_are_there_keep_their_number_of_shards(mixtral: Path, tmp_path: Path) -> None:
    options = {"shards": 4, "taps": list(OPTIONS.taps), "floor": OPTIONS.floor}
    tokens = {"n_sequences": 5, "sequence_length": 12}
    assert shards_to_record(tmp_path / "none", tokens, options) == 4
    assert shards_to_record(mixtral / "0-of-1", tokens, options) == 1
    merge_shards(parts(mixtral), tmp_path / "merged")
    assert shards_to_record(tmp_path / "merged", tokens, options) == N_SHARDS
    assert shards_to_record(tmp_path / "merged", tokens | {"n_sequences": 8}, options) == 4


def test_there_are_no_more_shards_than_sequences(tmp_path: Path) -> None:
    options = {"shards": 12, "taps": ["residual"], "floor": 3.0}
    assert shards_to_record(tmp_path / "none", {"n_sequences": 8, "sequence_length": 12}, options) == 8


def test_a_recording_of_shortened_sequences_keeps_its_shards(tmp_path: Path) -> None:
    run = {"n_sequences": 4, "sequence_length": 8, "taps": ["residual"], "floor": 3.0, "tokens": {"asked_length": 64}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    tokens = {"n_sequences": 4, "sequence_length": 64}
    options = {"taps": ["residual"], "floor": 3.0, "shards": 2}
    assert shards_to_record(tmp_path, tokens, options) == 1
    assert shards_to_record(tmp_path, tokens | {"sequence_length": 128}, options) == 2
